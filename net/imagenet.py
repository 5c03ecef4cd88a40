"""ImageNet's 1,000 categories by name, and the everyday words that stand for several of them."""

import difflib
import re
import textwrap
from functools import cache
from typing import Any

from data.errors import UserError

N_CATEGORIES = 1000
# ImageNet names breeds and makes; an everyday word is the mean of these. VOC's twenty classes are among the words.
COMMON = {
    "aeroplane airplane plane": "404 895",
    "ape": "365-369",
    "bear": "294-297",
    "bicycle bike": "444 671",
    "bird": "7-24 80-100 127-146",
    "boat": "472 484 554 576 625 780 814 871 914",
    "bottle": "440 720 737 898 907",
    "bus": "654 779 874",
    "butterfly": "321-326",
    "car": "436 468 511 609 627 656 661 751 817",
    "cat": "281-285",
    "chair": "423 559 765",
    "clock": "409 530 892",
    "cow": "345",
    "crocodile": "49 50",
    "cup": "504 967 968",
    "dining_table diningtable table": "532",
    "dog": "151-268",
    "elephant": "101 385 386",
    "fish": "0-6 389-397",
    "flower": "985 986",
    "fox": "277-280",
    "frog": "30-32",
    "guitar": "402 546",
    "horse": "339",
    "lizard": "38-48",
    "monkey": "370-382",
    "motorbike motorcycle": "665 670",
    "mushroom": "947 991-997",
    "person": "981-983",
    "potted_plant pottedplant": "738",
    "rabbit": "330-332",
    "rocket": "657 744 812",
    "sheep": "348 349",
    "ship": "403 510 628 724 913",
    "snake": "52-68",
    "sofa couch": "831",
    "spider": "72-77",
    "television tv tvmonitor": "664 782 851",
    "train": "466 547 565 705 820",
    "truck": "555 569 675 717 864 867",
    "turtle": "33-37",
    "whale": "147 148",
    "wolf": "269-271",
}


def find_categories(label: str) -> list[int]:
    """The ImageNet categories that a word means.

    An everyday word (`cat`: the five domestic cats), or a name, a synonym or a WordNet id of ImageNet's: `tabby`,
    `tabby cat`, `n02123045`; case, spaces, hyphens and underscores make no difference. UserError names the closest,
    or those that share the name.
    """
    word, (known, shared) = _plain(label), _categories()
    if word in shared:
        each = (
            f"{info().index_to_label_name(i)}, {info().index_to_description(i, detailed=True)}" for i in shared[word]
        )
        names = "; ".join(textwrap.shorten(text, 80, placeholder=" ...") for text in each)
        raise UserError(f"ImageNet has several categories {label!r}; give the id or another name of one: {names}")
    if word in known:
        return known[word]
    close = [name for name in known if word in name.split()][:5] or difflib.get_close_matches(word, known, 5)
    raise UserError(f"ImageNet has no category {label!r}; close to it: {', '.join(close) or 'nothing'}")


def name_of(index: int) -> str:
    """The first name of a category that `find_categories` takes for it, else its WordNet id."""
    known, shared = _categories()
    names = (*info().index_to_description(index).split(", "), info().index_to_label_name(index))
    return next(name for name in names if _plain(name) not in shared and index in known[_plain(name)])


@cache
def info() -> Any:
    """timm's `ImageNetInfo`: names and descriptions of the 1,000 categories."""
    from timm.data import ImageNetInfo

    return ImageNetInfo()


@cache
def _categories() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Word -> the categories that it means; name -> the categories that share it, where no everyday word is meant."""
    names: dict[str, list[int]] = {}
    groups: dict[str, list[int]] = {}
    for index, (own, synonyms) in enumerate(info().label_descriptions(as_dict=True).items()):
        for word in dict.fromkeys(map(_plain, (own, *synonyms.split(",")))):
            names.setdefault(word, []).append(index)
    for words, spans in COMMON.items():
        ends = ([int(end) for end in (*span.split("-"), span.split("-")[-1])[:2]] for span in spans.split())
        indices = [index for first, last in ends for index in range(first, last + 1)]
        groups |= {_plain(word): indices for word in words.split()}
    return names | groups, {word: names[word] for word in names.keys() - groups if len(names[word]) > 1}


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word.strip().casefold())
