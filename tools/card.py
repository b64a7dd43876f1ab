"""Draw the site's social card, nbs/card.png: `python tools/card.py`."""
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

font = font_manager.findfont('DejaVu Serif')
card = Image.new('P', (1200, 630), 0)
paper, ink, grey = (0xfd, 0xfc, 0xfa), (0x22, 0x21, 0x1f), (0x6b, 0x66, 0x5e)
red, blue = (0x9a, 0x34, 0x12), (0x00, 0x72, 0xb2)
card.putpalette([*paper, *ink, *grey, *red, *blue])
draw = ImageDraw.Draw(card)
draw.fontmode = '1'
draw.text((80, 90), 'artinsight', 1, ImageFont.truetype(font, 120))
draw.text((84, 260), 'Which style, human or AI, and why', 2, ImageFont.truetype(font, 46))
for place in range(10):    # ten styles, each by a human and by an AI
    for row, colour in enumerate((3, 4)):
        left, top = 84 + 105 * place, 380 + 100 * row
        draw.ellipse((left, top, left + 80, top + 80), fill=colour)
card.save(Path(__file__).resolve().parent.parent/'nbs/card.png', optimize=True, bits=4)
