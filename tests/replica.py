"""AI-ArtBench's 60 folders again, in name only: the known counts, names after the real patterns, AI names in groups of
four.

`names(percent)` lists the relative paths; `empty_files(dest, names)` makes them as empty files.
The words are invented; what is kept is the shape: artist_title-year for people, the other habit of some surrealist
names, style-seed-number for generators, a few artists with very many pictures, artists in both halves and in two
styles.
"""
import os
from pathlib import Path

import numpy as np
from artinsight.data import COUNTS, FOLDERS, STYLES

FIRST = ('anna bruno carla dmitri elena franz greta hiroshi irina jan karel lucia marco nina otto pavel rosa sven '
         'tomas vera').split()
LAST = ('adler bauer caruso duval ekberg fiala grimaldi holub ito janssen kovacs lindt moreau novak okada petrov rossi '
        'sato teniers vlach').split()
WORDS = ('portrait of a woman boats at evening the mill near river study for saint john view bridge garden after rain '
         'self winter road').split()

ENDINGS = ('', '-the-elder', '-ii', '-junior', '-bey')
ARTISTS = [(first, last + ending) for ending in ENDINGS for last in LAST for first in FIRST]      # 2,000: 200 a style

def _human(style, n, draw):
    """Names of `n` human pictures: as in the real ones an artist of 200 has up to 7 % of a style, one in twelve paints
    in two."""
    place = STYLES.index(style)
    own = [ARTISTS[(place*200 + k + (200 if k % 12 == 5 else 0)) % len(ARTISTS)] for k in range(200)]
    share = 1/(np.arange(200) + 3.5)
    made = []
    for i, k in enumerate(draw.choice(200, n, p=share/share.sum())):
        (first, last), title, year = own[k], '-'.join(draw.choice(WORDS, 3)), 1500 + int(draw.integers(480))
        if style == 'surrealism' and k % 2:
            made.append(f"{first.title()}_{last.title()}_{year}_{title.replace('-', '_').title()}_{i}.jpg")
        else: made.append(f'{first}-{last}_{title}-{i}' + (f'-{year}' if i % 3 else '') + '.jpg')
    return made

def _generated(style, n, draw, seeds):
    "Names of `n` generated pictures, four to a seed (the last group may be shorter); `seeds` holds those already used."
    made = []
    while len(made) < n:
        seed = int(draw.integers(1, 999_999_999))
        if seed in seeds: continue
        seeds.add(seed)
        made += [f'{STYLES.index(style)}-{seed}-{number}.jpg' for number in draw.choice(1_000_000, 4, replace=False)]
    return made[:n]

def names(
    percent: float = 100,  # share of the 60 counts, in percent
    seed: int = 0,  # of the draw
) -> list:  # relative paths, unsorted
    "Relative paths of the replica: `train/baroque/...jpg`."
    draw, seeds, paths = np.random.default_rng(seed), {folder: set() for folder in FOLDERS}, []
    for row in COUNTS.itertuples():
        style, origin, _ = FOLDERS[row.folder]
        n = counted(row.images, percent)
        made = _human(style, n, draw) if origin == 'human' else _generated(style, n, draw, seeds[row.folder])
        paths += [f'{row.split}/{row.folder}/{name}' for name in made]
    return paths

def counted(images, percent): return max(4, round(images*percent/100))

def counts(percent: float = 100):  # share of the known counts, in percent
    "The table of counts that `names(percent)` has."
    return COUNTS.assign(images=[counted(n, percent) for n in COUNTS.images])

def empty_files(dest, paths):
    "Make all `paths` below `dest` as empty files."
    for folder in {p.rpartition('/')[0] for p in paths}: os.makedirs(Path(dest)/folder, exist_ok=True)
    for path in paths: os.close(os.open(f'{dest}/{path}', os.O_CREAT | os.O_WRONLY))
    return Path(dest)
