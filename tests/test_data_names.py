"""Folder and file names of AI-ArtBench, as they really are: a handful here, all 4,000 known ones where the list is at
hand."""
from pathlib import Path

import pytest
from artinsight import data
from artinsight.data import COUNTS, FOLDERS, STYLES

# path, style, origin, generator, group
KNOWN = [
    ('train/impressionism/pierre-auguste-renoir_boating-at-argenteuil-1873.jpg', 'impressionism', 'human', 'human',
     'pierre-auguste-renoir'),
    ('train/post_impressionism/vincent-van-gogh_tiled-roof-with-chimneys-and-church-tower-1888.jpg',
     'post_impressionism', 'human', 'human', 'vincent-van-gogh'),
    ('train/expressionism/antonietta-raphael_unknown-title-5.jpg', 'expressionism', 'human', 'human',
     'antonietta-raphael'),
    ('train/surrealism/Judit_Reigl_1952_The_Sun.jpg', 'surrealism', 'human', 'human', 'judit-reigl'),
    ('train/surrealism/Planells_1929-1930_Our_seclusion_was_perfect.jpg', 'surrealism', 'human', 'human', 'planells'),
    ('test/surrealism/pierre-alechinsky_armoured-hat-chapeau-fort-1976.jpg', 'surrealism', 'human', 'human',
     'pierre-alechinsky'),
    ('test/AI_LD_art_nouveau/0-230824691-828358.jpg', 'art_nouveau', 'AI', 'LD', 'AI_LD_art_nouveau/230824691'),
    ('test/AI_LD_baroque/1-117721909-9472.jpg', 'baroque', 'AI', 'LD', 'AI_LD_baroque/117721909'),
    ('train/AI_SD_realism/5-25570352-51309.jpg', 'realism', 'AI', 'SD', 'AI_SD_realism/25570352'),
    ('train/AI_SD_post_impressionism/4-545099807-326757.jpg', 'post_impressionism', 'AI', 'SD',
     'AI_SD_post_impressionism/545099807'),
    ('test/AI_SD_ukiyo-e/9-1044-77.jpg', 'ukiyo_e', 'AI', 'SD', 'AI_SD_ukiyo-e/1044'),
    ('test/ukiyo_e/utagawa-kuniyoshi_the-ghost.jpg', 'ukiyo_e', 'human', 'human', 'utagawa-kuniyoshi'),
]

@pytest.mark.parametrize('path,style,origin,generator,group', KNOWN)
def test_typical_names(path, style, origin, generator, group):
    got = data.describe([path]).iloc[0]
    assert (got['style'], got['origin'], got['generator'], got['group']) == (style, origin, generator, group)
    assert got['split'] == path.split('/')[0] and got['class'] == f'{origin}_{style}'

def test_thirty_folders_there_and_back():
    assert len(FOLDERS) == 30 and set(COUNTS.folder) == set(FOLDERS)
    for name in FOLDERS:
        got = data.describe([f'train/{name}/a.jpg']).iloc[0]
        assert data.folder_name(got['style'], got.generator) == name and got['style'] in STYLES

@pytest.mark.parametrize('name', ['AI_LD_ukiyo_e', 'ukiyo-e', 'surreal', 'AI_baroque', 'human_baroque', 'Baroque', '',
                                  '..', 'AI_XL_baroque'])
def test_other_folders_are_refused(name):
    with pytest.raises(ValueError, match='unknown folder'): data.describe([f'train/{name}/a.jpg'])

LIST = Path(__file__).parents[2]/'shared/ai-artbench/file-names.txt'

@pytest.mark.skipif(not LIST.exists(), reason='the list of 4,000 real file names is not on this machine')
def test_all_known_names():
    "Every real name parses; style numbers agree; four pictures at most share a seed, and no seed crosses the halves."
    paths = LIST.read_text().split()
    frame = data.describe(paths)
    assert len(frame) == 4000 and not frame.isna().any().any() and (frame.group.str.len() > 0).all()
    generated = frame[frame.origin == 'AI']
    number = generated.path.str.split('/').str[2].str.split('-').str[0].astype(int)
    assert (number == [STYLES.index(s) for s in generated['style']]).all()
    assert generated.group.value_counts().max() <= 4
    assert generated.groupby('group').split.nunique().max() == 1
    assert list(frame.group) == [data._parse_name(path)['group'] for path in paths]  # no artist spans a folder
    artists = frame[frame.origin == 'human'].group
    assert artists.nunique() < len(artists)*.6 and artists.value_counts().max() < 40  # neither one a picture nor one
