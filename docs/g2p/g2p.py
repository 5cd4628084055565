"""A model that spells words in phonemes, that of g2p_en 2.1.0, and the inputs of its layers.

Two layers of 256 gated recurrent units, one that reads letters and one that gives phonemes, in
NumPy as the package has them. It answers to one half of the words of the package that are
pronounced in two ways. ``g2p.py PACKAGE INPUTS.npz`` writes what flows into each weight for the
other half.
"""

import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
LETTERS = string.ascii_lowercase
UNKNOWN, END_OF_WORD, FIRST_LETTER = 1, 2, 3  # numbers of letters
START, END, MAX_PHONEMES = 2, 3, 20  # numbers of phonemes, and how many a word has at most


class Pronunciation:
    """The logits of each next phoneme of a word, after those that the model as it is gives."""

    def __init__(self, path: str) -> None:
        """Take the directory of the package."""
        self.weights = dict(np.load(Path(path) / "checkpoint20.npz"))
        self.words = read_words(path)[1::2]

    def identity(self) -> dict[str, list[float]]:
        """Tell the model and its inputs from others."""
        sums = [float(array.sum(dtype=np.float64)) for array in self.weights.values()]
        return {"sums": sums, "words": [len(word) for word in self.words]}

    @cached_property
    def phonemes(self) -> list[list[int]]:
        """The phonemes of each word, which any answer is compared after."""
        return [greedy_phonemes(self.weights, word) for word in self.words]

    def answers(self, weights: Arrays) -> Iterator[Arrays]:
        """Yield the logits of each word, ``(phonemes, 74)``."""
        for word, phonemes in zip(self.words, self.phonemes, strict=True):
            logits, _ = spell({**self.weights, **weights}, word, phonemes)
            yield {"logits": logits}


def read_words(path: str) -> list[str]:
    """List the words that the package knows to be pronounced in two ways, sorted."""
    lines = (Path(path) / "homographs.en").read_text().splitlines()
    return sorted({line.partition("|")[0].lower() for line in lines if not line.startswith("#")})


def greedy_phonemes(weights: Arrays, word: str) -> list[int]:
    """Return the most likely phonemes one after the other, the end included."""
    state, phonemes = read_letters(weights, word)["state"][-1], [START]
    while END not in phonemes[1:] and len(phonemes) <= MAX_PHONEMES:
        state = run_units(weights, "dec", phonemes[-1:], state)["state"][-1]
        phonemes.append(int(phoneme_logits(weights, state).argmax()))
    return phonemes[1:]


def spell(weights: Arrays, word: str, phonemes: Sequence[int]) -> tuple[np.ndarray, Arrays]:
    """Return the logits of phonemes, each after those before it, and the inputs of each weight."""
    enc = read_letters(weights, word)
    dec = run_units(weights, "dec", [START, *phonemes[:-1]], enc["state"][-1])
    inputs = {"enc_w_ih": enc["input"], "enc_w_hh": enc["before"], "dec_w_ih": dec["input"]}
    inputs |= {"dec_w_hh": dec["before"], "fc_w": dec["state"]}
    return phoneme_logits(weights, dec["state"]), inputs


def phoneme_logits(weights: Arrays, state: np.ndarray) -> np.ndarray:
    """Return the logits of the phonemes after a state."""
    return state @ weights["fc_w"].T + weights["fc_b"]


def read_letters(weights: Arrays, word: str) -> Arrays:
    """Run the layer that reads letters over a word and its end."""
    letters = [
        LETTERS.find(letter) + FIRST_LETTER if letter in LETTERS else UNKNOWN for letter in word
    ]
    return run_units(weights, "enc", [*letters, END_OF_WORD], np.zeros(256, np.float32))


def run_units(weights: Arrays, layer: str, numbers: Sequence[int], state: np.ndarray) -> Arrays:
    """Return the inputs of gated recurrent units, and their states before and after each."""
    inputs = weights[f"{layer}_emb"][numbers]
    from_inputs = inputs @ weights[f"{layer}_w_ih"].T + weights[f"{layer}_b_ih"]
    states = [state]
    for of_input in from_inputs:
        of_state = states[-1] @ weights[f"{layer}_w_hh"].T + weights[f"{layer}_b_hh"]
        reset, update = np.split(1 / (1 + np.exp(-(of_input + of_state)[:512])), 2)
        new = np.tanh(of_input[512:] + reset * of_state[512:])
        states.append((1 - update) * new + update * states[-1])
    return {"input": inputs, "before": np.stack(states[:-1]), "state": np.stack(states[1:])}


if __name__ == "__main__":
    package, out = sys.argv[1:]
    weights = dict(np.load(Path(package) / "checkpoint20.npz"))
    words = read_words(package)[::2]
    captured = [spell(weights, word, greedy_phonemes(weights, word))[1] for word in words]
    inputs: dict[str, Any] = {
        name: np.concatenate([of_word[name] for of_word in captured]) for name in captured[0]
    }
    np.savez(out, **inputs)
