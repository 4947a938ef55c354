"""The 5 × 5 pictures of the README: one prompt each, seed 0, the defaults.

python benchmarks/contact_sheet.py docs/contact-sheet.png
"""

from __future__ import annotations

import sys

from PIL import Image

import sdfast

PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow star on a purple background, top left",
    "a large green triangle on a striped white background",
    "orange gradient background with a big black cross",
    "a tiny white ring on a striped red background, bottom right",
    "a big purple square on a yellow background",
    "a small red triangle on a green gradient background, in the centre",
    "a large blue star on a striped orange background",
    "a little black circle on the left on a white background",
    "a large orange ring on a blue gradient background",
    "purple stripes with a small green cross at the top right",
    "a big yellow circle on a black background",
    "a small white square on a red gradient background, bottom left",
    "a large red star on a white background, at the bottom",
    "a tiny orange triangle on a black background, right",
    "a large white cross on a striped green background",
    "a small blue ring on a yellow background, top",
    "a large black star on an orange gradient background",
    "a large yellow triangle on a striped blue background, at the right",
    "a small purple circle on a white gradient background, in the middle",
    "a large green square on a purple striped background",
    "a small red ring on a black gradient background, at the left",
    "white background with a big orange cross, large",
    "a small yellow square on a green background, bottom",
    "a large purple ring on a striped yellow background",
)


def main() -> None:
    pipe = sdfast.load("demo")
    margin, side = 4, 128
    sheet = Image.new("RGB", (5 * (side + margin) + margin,) * 2, "white")
    for k, prompt in enumerate(PROMPTS):
        image = pipe(prompt, seed=0).images[0]
        place = (margin + k % 5 * (side + margin), margin + k // 5 * (side + margin))
        sheet.paste(image, place)
    sheet.save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
