import pytest

from quantlab.plans.weights import read_weights, require_weights

NAMES = ["a.weight", "b,c"]


def test_what_is_listed_is_read(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text('tensor,alpha\na.weight,2.5\n\n"b,c",0\n')
    assert read_weights(path, NAMES) == {"a.weight": 2.5, "b,c": 0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must begin with the line tensor,alpha"),
        ("a.weight,2\n", "must begin with the line tensor,alpha"),
        ("tensor,alpha\nx,1\n", "line 2: the sweep has no tensor 'x': near"),
        (
            "tensor,alpha\na.weight,-1\n",
            "line 2: the alpha of 'a.weight' must be from 0 up, got '-1'",
        ),
        ("tensor,alpha\na.weight,nan\n", "must be from 0 up, got 'nan'"),
        ("tensor,alpha\na.weight,much\n", "must be from 0 up, got 'much'"),
        ("tensor,alpha\na.weight,1\na.weight,1\n", "line 3: 'a.weight' stands there twice"),
        ("tensor,alpha\na.weight\n", "line 2: a line is a tensor and its alpha, got 'a.weight'"),
        ("\xff", "w.csv cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, content, said):
    path = tmp_path / "w.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}") as caught:
        read_weights(path, NAMES)
    assert said.replace("near", "") in str(caught.value)


def test_weights_given_in_python_are_held_to_the_same():
    assert require_weights({"a.weight": 1.0}, NAMES) == {"a.weight": 1.0}
    with pytest.raises(ValueError, match=r"weights: the alpha of 'a.weight' must be from 0 up"):
        require_weights({"a.weight": -1.0}, NAMES)
