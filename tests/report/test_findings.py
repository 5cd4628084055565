from quantlab.report import findings

HOSTILE = "w|<script>alert(1)</script>`[x](y)*_\n"
LEVELS = ["dist", "mode", "n_bits", "tensor"]


def rows(*dists, modes=("s", "t"), widths=(4, 8, 16), tensors=("w",), sqnr=float):
    return [
        {"dist": dist, "mode": mode, "n_bits": n, "tensor": tensor, "sqnr_db": sqnr(n)}
        for dist in dists
        for mode in modes
        for n in widths
        for tensor in tensors
    ]


def named(found, chosen):
    return [
        "".join(str(found[n][key]) for key in ("dist", "mode", "n_bits", "tensor")) for n in chosen
    ]


def test_one_row_a_source_and_mode_is_looked_at_in_eight_bits_the_worst_first():
    found = rows("a", "b", "c", "d")
    found[[each["dist"] for each in found].index("d") + 1]["sqnr_db"] = 1.0
    assert named(found, findings.choose_details(found, LEVELS)) == [
        "ds8w", "as8w", "at8w", "bs8w", "bt8w", "cs8w",
    ]  # fmt: skip
    narrow = rows("a", widths=(4, 16))
    assert named(narrow, findings.choose_details(narrow, LEVELS)) == ["as4w", "at4w"]


def test_of_many_tensors_the_worst_is_looked_at():
    found = rows("a", modes="s", widths=[8], tensors=("w", "v", "u"))
    found[1]["sqnr_db"], found[2]["sqnr_db"] = 5.0, None
    assert named(found, findings.choose_details(found, LEVELS)) == ["as8v"]


def test_what_else_was_swept_is_looked_at_too():
    found = [row | {"seed": seed} for seed in (1, 2) for row in rows("a", modes="s")]
    assert named(found, findings.choose_details(found, [*LEVELS, "seed"])) == ["as8w", "as8w"]


def test_the_histogram_is_of_hidden_in_each_mode():
    found = rows("a", "hidden", tensors=("w", "v"), widths=(16, 8))
    worst = next(each for each in found if each["dist"] == "hidden" and each["n_bits"] == 8)
    worst["sqnr_db"] = 1.0
    assert named(found, findings.choose_histogram(found)) == ["hiddens8w", "hiddent8w"]
    assert named(found[:4], findings.choose_histogram(found[:4])) == ["as8w"]
