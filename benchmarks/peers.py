"The loaders and augmentations that we are measured against, each set up as its documentation says."
import torch
from fastai.vision.all import (Brightness, Contrast, Dihedral, Flip, Hue, ImageDataLoaders, IntToFloatTensor, Normalize,
                               Pipeline, RandomResizedCropGPU, Resize, ResizeMethod, Rotate, Saturation, setup_aug_tfms,
                               TensorImage)
from kornia import augmentation as K
from timm.data import create_loader
from timm.data.transforms import ToNumpy
from torch.utils.data import DataLoader
from torchvision import datasets, transforms as T

from artinsight.data import CLASSES, FOLDERS, index
from artinsight.engine.augment import augment_batch, DEGREES, JITTER, MEAN, normalise, RATIO, SCALE, STD
from artinsight.engine.store import build_store
from artinsight.loading import CACHE, dataloaders

WORKERS = 2
RECIPES = {'plain': (), 'augmented': ('hflip', 'vflip', 'rotation'),
           'aggressive': ('hflip', 'rotation', 'crop', 'colour')}

def pillow_steps(size, augment):
    "The study's transforms of one PIL picture."
    table = {'hflip': T.RandomHorizontalFlip(), 'vflip': T.RandomVerticalFlip(), 'rotation': T.RandomRotation(DEGREES),
             'crop': T.RandomResizedCrop(size), 'colour': T.ColorJitter(JITTER, JITTER, JITTER, JITTER)}
    return [T.Resize((size, size)), *(table[step] for step in augment)]

def torchvision_steps(size, augment):
    "All of torchvision's transforms, from a PIL picture to a normalised tensor."
    return T.Compose(pillow_steps(size, augment) + [T.ToTensor(), T.Normalize(MEAN, STD)])

def folder(root, size, augment=(), transform=None):
    "torchvision's ImageFolder, its 30 folders mapped to the 20 classes."
    pictures = datasets.ImageFolder(root, transform or torchvision_steps(size, augment))
    number = [CLASSES.index('{1}_{0}'.format(*FOLDERS[name])) for name in pictures.classes]
    pictures.target_transform = number.__getitem__
    return pictures

def torchvision_loader(root, size, augment, batch_size):
    "The study's way: every JPEG decoded again in every epoch, by two workers."
    return DataLoader(folder(root, size, augment), batch_size, shuffle=True, num_workers=WORKERS,
                      persistent_workers=True)

def timm_loader(root, size, augment, batch_size):
    "timm's create_loader with its fast collation and prefetcher."
    transform = T.Compose(pillow_steps(size, augment) + [ToNumpy()])
    pictures = folder(root, size, transform=transform)
    loader = create_loader(pictures, (3, size, size), batch_size, is_training=True, num_workers=WORKERS,
                           persistent_workers=True, device=torch.device('cpu'), re_prob=0.)
    pictures.transform = transform  # create_loader has put its own in place
    return loader

def flips_only(x):
    "Of fastai's eight turns and flips those four that are flips, left-right and up-down each with a half."
    return torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (len(x),))]

def fastai_steps(size, augment):
    "fastai's batch transforms for the study's steps, put together as its `aug_transforms` does."
    pixels, spread = dict(mode='nearest', pad_mode='zeros'), dict(max_lighting=JITTER, p=1.)
    flips = [Dihedral(p=1., draw=flips_only, **pixels)] if 'vflip' in augment else [Flip(**pixels)]
    table = {'hflip': flips, 'vflip': [], 'rotation': [Rotate(DEGREES, p=1., **pixels)],
             'crop': [RandomResizedCropGPU(size, SCALE[0], RATIO)],
             'colour': [Brightness(**spread), Contrast(**spread), Saturation(**spread), Hue(max_hue=JITTER, p=1.)]}
    return setup_aug_tfms([transform for step in augment for transform in table[step]])

def fastai_loader(root, size, augment, batch_size):
    "fastai's ImageDataLoaders: pictures squashed one by one, augmented in batches."
    item_step = Resize(size, method=ResizeMethod.Squish)
    batch_steps = fastai_steps(size, augment) + [Normalize.from_stats(MEAN, STD, cuda=False)]
    return ImageDataLoaders.from_folder(root, valid_pct=.02, seed=0, item_tfms=item_step, batch_tfms=batch_steps,
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

def fastai_augmenter(size, augment):
    "fastai's batch transforms, from bytes to normalised floats."
    steps = [IntToFloatTensor(), *fastai_steps(size, augment), Normalize.from_stats(MEAN, STD, cuda=False)]
    pipeline = Pipeline(steps, split_idx=0)
    return lambda x: pipeline(TensorImage(x)).as_subclass(torch.Tensor)

def kornia_augmenter(size, augment):
    "kornia's; crops are cut out and enlarged as torchvision does it."
    table = {'hflip': K.RandomHorizontalFlip(), 'vflip': K.RandomVerticalFlip(),
             'rotation': K.RandomRotation(DEGREES, resample='nearest', align_corners=True, p=1.),
             'crop': K.RandomResizedCrop((size, size), SCALE, RATIO, align_corners=False),
             'colour': K.ColorJitter(JITTER, JITTER, JITTER, JITTER)}
    pipeline = torch.nn.Sequential(*(table[step] for step in augment), K.Normalize(MEAN, STD))
    return lambda x: pipeline(x.float().div_(255))

def our_augmenter(size, augment):
    "Ours, in such parts as `BatchLoader` takes."
    generator = torch.Generator().manual_seed(0)
    def augmenter(x):
        out = torch.empty(x.shape, memory_format=torch.channels_last)
        part = max(CACHE // x[0].numel(), 1)
        for pictures, place in zip(x.split(part), out.split(part)):
            normalise(augment_batch(pictures, augment, generator), place)
        return out
    return augmenter

def in_parts(make):
    "A peer's augmenter, given parts of a batch that stay in a CPU's cache, as ours is."
    def made(size, augment):
        augmenter, part = make(size, augment), max(CACHE // (3 * size * size), 1)
        return lambda x: torch.cat([augmenter(pictures) for pictures in x.split(part)])
    return made

AUGMENTERS = {'fastai': fastai_augmenter, 'fastai, in parts': in_parts(fastai_augmenter), 'kornia': kornia_augmenter,
              'kornia, in parts': in_parts(kornia_augmenter), 'artinsight': our_augmenter}
