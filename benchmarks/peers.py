"The loaders that we are measured against, each set up as its documentation says, with the same augmentations."
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms as T

from artinsight.data import CLASSES, FOLDERS
from artinsight.engine.augment import DEGREES, JITTER, MEAN, STD
from artinsight.engine.store import build_store
from artinsight.loading import dataloaders
from artinsight.data import index

WORKERS = 2
RECIPES = {'plain': (), 'augmented': ('hflip', 'vflip', 'rotation'),
           'aggressive': ('hflip', 'rotation', 'crop', 'colour')}

def steps(size, augment):
    "The study's transforms of one PIL picture."
    table = {'hflip': T.RandomHorizontalFlip(), 'vflip': T.RandomVerticalFlip(), 'rotation': T.RandomRotation(DEGREES),
             'crop': T.RandomResizedCrop(size), 'colour': T.ColorJitter(JITTER, JITTER, JITTER, JITTER)}
    return [T.Resize((size, size)), *(table[name] for name in augment)]

def folder(root, size, augment=(), end=None):
    "torchvision's ImageFolder, its 30 folders mapped to the 20 classes."
    pictures = datasets.ImageFolder(root, T.Compose(steps(size,
                                                          augment) + (end or [T.ToTensor(), T.Normalize(MEAN, STD)])))
    number = [CLASSES.index('{1}_{0}'.format(*FOLDERS[name])) for name in pictures.classes]
    pictures.target_transform = number.__getitem__
    return pictures

def torchvision_loader(root, size, augment, batch_size):
    "The study's way: every JPEG decoded again in every epoch, by two workers."
    return DataLoader(folder(root, size, augment), batch_size, shuffle=True, num_workers=WORKERS,
                      persistent_workers=True)

def timm_loader(root, size, augment, batch_size):
    "timm's create_loader with its fast collation and prefetcher."
    from timm.data import create_loader
    from timm.data.transforms import ToNumpy
    pictures = folder(root, size, augment, [ToNumpy()])
    loader = create_loader(pictures, (3, size, size), batch_size, is_training=True, num_workers=WORKERS,
                           persistent_workers=True,
                           device=torch.device('cpu'), re_prob=0.)
    pictures.transform = T.Compose(steps(size, augment) + [ToNumpy()])  # create_loader has put its own in place
    return loader

def fastai_loader(root, size, augment, batch_size):
    "fastai's ImageDataLoaders: pictures squashed one by one, augmented in batches."
    from fastai.vision.all import (Brightness, Contrast, Flip, Hue, ImageDataLoaders, Normalize, RandomResizedCropGPU,
                                   Resize, ResizeMethod,
                                   Rotate, Saturation)
    spread = dict(max_lighting=JITTER, p=1.)
    table = {'hflip': [Flip()], 'vflip': [], 'rotation': [Rotate(DEGREES, p=1., mode='nearest', pad_mode='zeros')],
             'crop': [RandomResizedCropGPU(size, min_scale=.08)],
             'colour': [Brightness(**spread), Contrast(**spread), Saturation(**spread), Hue(max_hue=JITTER, p=1.)]}
    batch_steps = [step for name in augment for step in table[name]] + [Normalize.from_stats(MEAN, STD, cuda=False)]
    return ImageDataLoaders.from_folder(root, valid_pct=.02, seed=0, item_tfms=Resize(size, method=ResizeMethod.Squish),
                                        batch_tfms=batch_steps,
                                        bs=batch_size, num_workers=WORKERS, device=torch.device('cpu'),
                                        drop_last=False).train

def our_loader(root, size, augment, batch_size, store_folder=None):
    "The store, built before, and batches augmented on the device."
    frame = index(root.parent)
    frame = frame[frame.split == root.name].reset_index(drop=True)
    store = build_store(frame, frame.attrs['root'], size, store_folder, progress=False)
    return dataloaders(store, range(len(store)), range(min(len(store), 64)), augment=augment, batch_size=batch_size,
                       device='cpu').train

LOADERS = {'torchvision': torchvision_loader, 'fastai': fastai_loader, 'timm': timm_loader, 'artinsight': our_loader}
