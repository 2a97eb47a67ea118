"""Draw a fine-grained data set: cartoon dogs whose breeds differ in small things, with planted, documented faults.

Before it: nothing, no network and no photographs. After it: `survey` looks at the folder as at any other, and whoever
wants to know how well the clean-up did compares it with `truth.csv`.

Every drawing is a pure function of (seed, breed, number): the files that carry no fault have the same bytes however
many breeds or images are asked for. One part after another is painted with a soft mask of its outline, lit from the
outline's own bulge, and torn at the rim along the grain of the coat; that is all the art there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Breed:
    """What makes a breed. Numbers are proportions, 1 is an average dog; the words are keys of the tables below."""

    name: str
    coat: str
    mark: str
    pattern: str
    marking: str
    texture: str
    ears: str
    ear: float
    skull: float
    muzzle: float
    jowl: float
    eyes: float
    girth: float
    body: float
    legs: float
    tail: str


# fmt: off
BREEDS: Final = (
    #      name                  coat       mark       pattern    marking    texture   ears     ear  skull muzz jowl eyes girth body legs  tail
    Breed("Marsh Pointer",      "#f1ebe0", "#6b3d22", "spots",   "hood",    "smooth", "drop",   1.0, 0.95, 1.3, 0.9, 0.95, 0.9, 1.1, 1.2, "whip"),
    Breed("Copper Fenhound",    "#a8562a", "#8c4420", "solid",   "none",    "smooth", "long",   1.1, 0.9,  1.2, 0.9, 0.9,  0.9, 1.1, 1.1, "whip"),
    Breed("Snowdrift Spitz",    "#f7f3ec", "#fdfaf5", "solid",   "none",    "long",   "prick",  0.8, 1.0,  0.8, 0.8, 0.95, 1.1, 0.9, 0.9, "plume"),
    Breed("Harbour Terrier",    "#77787c", "#b9b6ae", "solid",   "urajiro", "wiry",   "button", 0.9, 0.9,  0.9, 1.1, 0.95, 0.9, 0.8, 0.8, "stub"),
    Breed("Black Alder Sheepdog", "#2a2a2e", "#f3efe8", "solid", "blaze",   "long",   "button", 0.9, 1.0,  1.0, 0.9, 1.0,  1.0, 1.0, 1.0, "plume"),
    Breed("Amber Shiba",        "#d08a45", "#f6e9d4", "solid",   "urajiro", "smooth", "prick",  0.8, 1.05, 0.8, 0.9, 1.0,  1.0, 0.9, 0.9, "curl"),
    Breed("Barrel Bulldog",     "#c9a27a", "#f3ebdd", "solid",   "blaze",   "smooth", "rose",   0.9, 1.15, 0.4, 1.5, 1.3,  1.3, 0.9, 0.7, "stub"),
    Breed("Curly Reedwater",    "#5d3a28", "#4c2e20", "solid",   "none",    "curly",  "long",   0.9, 0.95, 1.0, 0.9, 0.95, 1.0, 1.0, 1.1, "whip"),
    Breed("Coal Ratter",        "#27262a", "#b8733a", "solid",   "points",  "smooth", "prick",  1.0, 0.85, 1.0, 0.8, 0.9,  0.8, 0.9, 1.0, "whip"),
    Breed("Blue Merle Drover",  "#9aa3ae", "#3f444e", "merle",   "none",    "long",   "drop",   0.8, 1.0,  1.0, 0.9, 1.0,  1.0, 1.0, 0.9, "stub"),
    Breed("Fawn Batling",       "#d9b184", "#33291f", "solid",   "mask",    "smooth", "bat",    1.0, 1.05, 0.4, 1.2, 1.3,  1.1, 0.8, 0.7, "stub"),
    Breed("Patchwork Beaglet",  "#f4eee3", "#b06a34", "patches", "hood",    "smooth", "drop",   1.1, 0.95, 1.0, 1.0, 1.0,  1.0, 1.0, 0.8, "sabre"),
    Breed("Saddle Mountain Dog", "#c48a4e", "#2c2826", "solid",  "saddle",  "long",   "prick",  1.0, 0.95, 1.2, 0.9, 0.9,  1.0, 1.2, 1.1, "plume"),
    Breed("Tiger Mastiff",      "#a9774a", "#3c2819", "brindle", "mask",    "smooth", "drop",   0.8, 1.15, 0.8, 1.4, 1.1,  1.3, 1.1, 1.1, "sabre"),
    Breed("Dotted Coachdog",    "#f7f5f0", "#232227", "spots",   "none",    "smooth", "drop",   0.9, 0.9,  1.1, 0.9, 0.9,  0.9, 1.0, 1.2, "whip"),
    Breed("Apricot Curlet",     "#e0ab72", "#e7b985", "solid",   "none",    "curly",  "drop",   1.0, 0.9,  0.8, 0.8, 1.0,  0.8, 0.8, 0.9, "plume"),
    Breed("Long Burrower",      "#7a3f22", "#5e2f19", "solid",   "none",    "smooth", "long",   1.0, 0.85, 1.3, 0.8, 0.9,  0.9, 1.5, 0.4, "whip"),
    Breed("Silver Sledder",     "#80868f", "#f4f4f2", "solid",   "urajiro", "long",   "prick",  0.9, 1.0,  1.1, 0.9, 0.9,  1.0, 1.1, 1.1, "curl"),
    Breed("Wheaten Brushhound", "#d8b67f", "#e6cfa5", "solid",   "none",    "wiry",   "drop",   0.8, 0.95, 1.1, 1.1, 1.0,  0.9, 1.0, 1.2, "sabre"),
    Breed("Piebald Butterfly",  "#f6f1e8", "#9c5a2c", "patches", "hood",    "long",   "bat",    1.1, 0.85, 0.8, 0.7, 1.1,  0.8, 0.8, 0.7, "plume"),
    Breed("Slate Courser",      "#7c7f88", "#e9e6e0", "solid",   "blaze",   "smooth", "rose",   0.8, 0.8,  1.5, 0.7, 0.85, 0.75, 1.2, 1.4, "whip"),
    Breed("Tawny Brindlebolt",  "#c08a55", "#59371f", "brindle", "none",    "smooth", "rose",   0.9, 0.85, 1.3, 0.8, 0.9,  0.8, 1.1, 1.3, "whip"),
    Breed("Old Cottage Shag",   "#8d949c", "#f3f0ea", "patches", "blaze",   "long",   "drop",   0.8, 1.15, 0.9, 1.1, 1.0,  1.2, 1.0, 1.0, "stub"),
    Breed("Pepper Schnauz",     "#4e4f53", "#c9c6bf", "solid",   "points",  "wiry",   "prick",  0.7, 0.95, 1.0, 1.2, 0.95, 1.0, 0.9, 0.9, "stub"),
    Breed("Rust Dingo",         "#b9682f", "#ecd4b0", "solid",   "urajiro", "smooth", "bat",    0.8, 0.9,  1.1, 0.8, 0.9,  0.85, 1.1, 1.2, "sabre"),
    Breed("Liver Merle Curl",   "#b08a72", "#5a3526", "merle",   "none",    "curly",  "long",   1.0, 1.0,  1.1, 1.0, 1.0,  1.0, 1.0, 1.0, "sabre"),
)

# Which parts of the dog wear the second colour.
MARKINGS: Final = {
    "none": frozenset[str](),
    "blaze": frozenset({"blaze", "muzzle", "chest", "paw"}),
    "hood": frozenset({"ear", "patch"}),
    "mask": frozenset({"muzzle", "ear"}),
    "points": frozenset({"muzzle", "brow", "chest", "paw", "shin"}),
    "saddle": frozenset({"saddle", "ear", "tail", "crown"}),
    "urajiro": frozenset({"muzzle", "cheek", "brow", "chest", "paw"}),
}

# Outlines of a right ear about its root, in half heads: control points, a point given twice makes a sharper corner.
EARS: Final = {
    "prick":  ((-0.30, 0.25), (-0.26, -0.25), (-0.02, -0.95), (0.02, -0.98), (0.30, -0.35), (0.40, 0.30)),
    "bat":    ((-0.34, 0.25), (-0.42, -0.50), (-0.15, -1.20), (0.22, -1.25), (0.50, -0.60), (0.42, 0.30)),
    "button": ((-0.36, 0.10), (-0.28, -0.34), (0.10, -0.52), (0.44, -0.30), (0.34, 0.30), (0.30, 0.42), (0.02, 0.10)),
    "rose":   ((-0.30, 0.10), (-0.16, -0.30), (0.28, -0.44), (0.74, -0.20), (0.76, -0.10), (0.38, 0.10), (0.10, 0.25)),
    "drop":   ((-0.28, 0.00), (0.00, -0.34), (0.44, -0.14), (0.62, 0.50), (0.46, 1.02), (0.22, 1.02), (0.04, 0.45)),
    "long":   ((-0.28, 0.00), (0.02, -0.30), (0.44, -0.05), (0.66, 0.80), (0.62, 1.60), (0.22, 1.66), (0.10, 0.70)),
}
UPRIGHT: Final = frozenset({"prick", "bat"})

# Centre line of a tail from its root, in units of the body, and its half widths.
TAILS: Final = {
    "curl":  (((0.05, 0.05), (-0.22, -0.16), (-0.24, -0.44), (0.00, -0.54), (0.14, -0.38), (0.04, -0.28)), (0.09, 0.11, 0.11, 0.10, 0.09, 0.06)),
    "whip":  (((0.05, 0.00), (-0.22, 0.02), (-0.44, -0.12), (-0.62, -0.34)), (0.07, 0.05, 0.035, 0.02)),
    "plume": (((0.05, 0.00), (-0.20, -0.14), (-0.42, -0.42), (-0.34, -0.74)), (0.09, 0.15, 0.19, 0.08)),
    "sabre": (((0.05, 0.00), (-0.20, 0.14), (-0.42, 0.22), (-0.64, 0.14)), (0.09, 0.08, 0.07, 0.04)),
    "stub":  (((0.05, 0.05), (-0.08, -0.06), (-0.14, -0.12)), (0.09, 0.09, 0.06)),
}

# How far the rim of a coat is torn, how strongly its grain shows; and the grain: wave lengths across and along, degrees.
COATS: Final = {
    "smooth": (0.10, 0.030, ((1.6, 6.0, 12.0),)),
    "long":   (0.75, 0.075, ((2.2, 16.0, 10.0), (2.2, 14.0, -14.0))),
    "wiry":   (0.60, 0.085, ((1.6, 7.0, 38.0), (1.6, 7.0, -32.0))),
    "curly":  (0.55, 0.110, ((5.0, 5.0, 0.0),)),
}
# fmt: on
