"""What a picture file may hold: each sound file gives its right pixels, each other one a reason that says what it is.

Files are written by Pillow, or byte by byte as their format's specification has it (TIFF 6.0, PNG 1.2, BMP's headers,
Netpbm), since no writer at hand makes them; what is no picture here, by the first bytes that its specification wants.
All show the same scene: red grows to the right, green downwards, blue to the left; grey ones grow to the right.
"""
import io, os, struct, zipfile, zlib

import numpy as np, pytest
from PIL import Image, features
from PIL.TiffImagePlugin import AppendingTiffWriter
from artinsight.engine.pictures import BadPicture, decode, open_picture, to_rgb

SIDE = 64
GREY = np.linspace(0, 1, SIDE)[None].repeat(SIDE, 0)  # 0 black, 1 white
SCENE = np.stack([GREY, GREY.T, GREY[:, ::-1]], 2)
BYTES = (SCENE * 255).round().astype(np.uint8)
PICTURE = Image.fromarray(BYTES)
WHITE = np.ones_like(SCENE)


def shows(file, expected, tolerance=1):
    "Whether the file's pixels are the expected ones (0..1, grey or colour), within so many grey levels."
    got = np.asarray(open_picture(io.BytesIO(file))).astype(float)
    expected = np.broadcast_to(expected if expected.ndim == 3 else expected[..., None], got.shape) * 255
    assert np.abs(got - expected).max() <= tolerance, (got[32, ::21].tolist(), expected[32, ::21].round().tolist())


def refused(file, *words):
    with pytest.raises(BadPicture) as caught: open_picture(io.BytesIO(file))
    assert all(word in caught.value.reason for word in words) and '\n' not in caught.value.reason, caught.value.reason


def saved(picture, kind, **options):
    picture.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def tiff(pixels, bits, order='<', kind=1, photometric=1, samples=1, planar=1, compress=False, more=()):
    "A TIFF of one strip; `kind` is SampleFormat: 1 unsigned, 2 signed, 3 floating."
    data = zlib.compress(pixels) if compress else pixels
    tags = {256: [SIDE], 257: [SIDE], 258: [bits] * samples, 259: [8 if compress else 1], 262: [photometric], 273: [8],
        277: [samples],
            278: [SIDE], 279: [len(data)], 284: [planar], 339: [kind] * samples, **dict(more)}
    at, entries, beyond = 8 + len(data), b'', b''
    after = at + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f'{order}{len(values)}I', *values)
        if len(packed) > 4: packed, beyond = struct.pack(order + 'I', after + len(beyond)), beyond + packed
        entries += struct.pack(order + 'HHI', tag, 4, len(values)) + packed
    head = struct.pack(order + '2sHI', {'<': b'II', '>': b'MM'}[order], 42, at)
    return head + data + struct.pack(order + 'H', len(tags)) + entries + bytes(4) + beyond


def numbers(values, top, kind): return (values * top).round().astype(kind).tobytes()


ORDERS = pytest.mark.parametrize('order', '<>')


@ORDERS
@pytest.mark.parametrize('bits,kind,code,top', [(16, 1, 'u2', 65535), (16, 2, 'i2', 32767), (8, 2, 'i1', 127),
    (32, 2, 'i4', 2 ** 31 - 1),
    (32, 2, 'i4', 65535), (32, 2, 'i4', 255), (32, 3, 'f4', 255), (32, 3, 'f4', 65535)])
def test_deep_and_signed_tiff(order, bits, kind, code, top):
    shows(tiff(numbers(GREY, top, order + code), bits, order, kind), (GREY * top).round() / top)


@ORDERS
def test_floating_tiff(order):
    "White is 1; what a resampling overshoots is white, what is no number is black."
    shows(tiff(GREY.astype(order + 'f4').tobytes(), 32, order, 3), GREY)
    shows(tiff((GREY * 1.2 - .1).astype(order + 'f4').tobytes(), 32, order, 3), (GREY * 1.2 - .1).clip(0, 1))
    odd = np.where(GREY < .5, np.nan, GREY)
    shows(tiff(odd.astype(order + 'f4').tobytes(), 32, order, 3), np.where(GREY < .5, 0, GREY))


def test_unsigned_32_bit_tiff(): shows(tiff(numbers(GREY, 2 ** 32 - 1, '<u4'), 32), GREY)


def test_negative_pixels_are_black():
    shows(tiff(numbers(GREY * 2 - 1, 32767, '<i2'), 16, kind=2), (GREY * 2 - 1).clip(0, 1))
    shows(tiff(numbers(GREY * 2 - 1, 127, 'i1'), 8, kind=2), (GREY * 2 - 1).clip(0, 1), 2)


def test_twelve_bit_tiff():
    "As X-ray and microscope cameras write it: two pixels in three bytes."
    values = (GREY * 4095).round().astype(int)
    a, b = values[:, ::2], values[:, 1::2]
    shows(tiff(np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 2).astype(np.uint8).tobytes(), 12), GREY)


@pytest.mark.parametrize('bits,kind,code,top', [(8, 1, 'u1', 255), (16, 1, '<u2', 65535), (32, 3, '<f4', 1)])
def test_white_is_zero(bits, kind, code, top):
    "Scanners' and fax machines' TIFF: 0 is white."
    inverted = (1 - GREY) * top
    pixels = inverted.astype(code) if kind == 3 else inverted.round().astype(code)
    shows(tiff(pixels.tobytes(), bits, kind=kind, photometric=0), GREY)


@ORDERS
def test_colour_tiff(order):
    shows(tiff(numbers(SCENE, 65535, order + 'u2'), 16, order, photometric=2, samples=3), SCENE)
    shows(tiff(numbers(SCENE, 65535, order + 'u2'), 16, order, photometric=2, samples=3, compress=True), SCENE)
    shows(tiff(numbers(SCENE.transpose(2, 0, 1), 255, 'u1'), 8, order, photometric=2, samples=3, planar=2,
               more={273: [8 + i * SIDE ** 2 for i in range(3)], 279: [SIDE ** 2] * 3}.items()), SCENE)


def test_cielab_tiff():
    pixels = np.stack([GREY * 255, GREY * 0, GREY * 0], 2).round().astype(np.uint8).tobytes()
    shows(tiff(pixels, 8, photometric=8, samples=3),
                              np.asarray([lab_grey(level) for level in GREY[0]])[None].repeat(SIDE, 0), 2)


def lab_grey(level):
    "sRGB's grey of a lightness 0..1, by the formulas of CIE 1976 and IEC 61966-2-1."
    light = ((level * 100 + 16) / 116) ** 3 if level > .08 else level * 100 / 903.3
    return 1.055 * light ** (1 / 2.4) - .055 if light > .0031308 else 12.92 * light


def test_what_pillow_misreads_is_refused():
    "Deep colours in planes, and compressed big-endian signed or floating numbers: wrong pixels, without an error."
    planes = {273: [8 + i * 2 * SIDE ** 2 for i in range(3)], 279: [2 * SIDE ** 2] * 3}.items()
    refused(tiff(numbers(SCENE.transpose(2, 0, 1), 65535, '<u2'), 16, photometric=2, samples=3, planar=2, more=planes),
        'a kind of TIFF that Pillow misreads')
    for code, kind, bits in (('>i2', 2, 16), ('>f4', 3, 32), ('>i4', 2, 32)):
        refused(tiff(GREY.astype(code).tobytes(), bits, '>', kind, compress=True),
            'a kind of TIFF that Pillow misreads')
    shows(tiff(numbers(GREY, 32767, '<i2'), 16, kind=2, compress=True), GREY)


def test_previews():
    "The whole picture, not the small copy that stands before it; of a camera's raw file only the copy can be read."
    small, whole = Image.new('RGB', (8, 8)), PICTURE
    pages = io.BytesIO()
    with AppendingTiffWriter(pages, True) as writer:
        for picture, subfile in ((small, 1), (whole, 0)):
            picture.save(writer, 'TIFF', tiffinfo={254: subfile})
            writer.newFrame()
    shows(pages.getvalue(), SCENE)
    refused(saved(whole, 'TIFF', tiffinfo={254: 1}), "camera's raw", 'convert it to JPEG or PNG')


# PNG

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(rows, depth, colour, *before, after=()):
    "A PNG of these rows of bytes, with more chunks before and after the pixels."
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', SIDE, SIDE, depth, colour, 0, 0, 0))
    pixels = chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
    parts = head, *(chunk(*c) for c in before), pixels, *(chunk(*c) for c in after), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


MUCH = zlib.compress(bytes(2 ** 21))
TEXTS = {'profile': (b'iCCP', b'print\0\0' + MUCH), 'compressed text': (b'zTXt', b'Comment\0\0' + MUCH),
         'international text': (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + MUCH)}


@pytest.mark.parametrize('name', TEXTS)
def test_png_with_much_beside_the_picture(name):
    shows(png(BYTES, 8, 2, TEXTS[name]), SCENE)
    if name != 'profile': shows(png(BYTES, 8, 2, after=[TEXTS[name]]), SCENE)


def test_png_with_many_texts(): shows(png(BYTES, 8, 2, *[(b'tEXt', b'Comment\0' + b'a' * 2 ** 20)] * 66), SCENE)


def test_a_turned_png_with_a_large_profile_is_turned():
    "EXIF is kept when the rest is left out."
    exif = Image.Exif()
    exif[0x0112] = 6
    shows(png(np.rot90(BYTES).copy(), 8, 2, TEXTS['profile'], (b'eXIf', exif.tobytes()[6:])), SCENE)


def test_a_damaged_png_with_a_large_profile_is_still_damaged():
    refused(png(BYTES, 8, 2, TEXTS['profile'])[:-200], 'truncated')


def packed(levels, bits):
    "Rows of grey levels, several in a byte."
    parts = levels.astype(np.uint8).reshape(SIDE, -1, 8 // bits)
    return sum(parts[:, :, i] << (bits * (8 // bits - 1 - i)) for i in range(8 // bits)).astype(np.uint8)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_few_grey_levels_and_a_transparent_one(bits):
    top = 2 ** bits - 1
    levels = (GREY * top).round()
    shows(png(packed(levels, bits), bits, 0), levels / top)
    shows(png(packed(levels, bits), bits, 0, (b'tRNS', struct.pack('>H', 1))), np.where(levels == 1, 1, levels / top))


def test_sixteen_bits_and_a_transparent_colour():
    grey, colour = (GREY * 65535).round().astype('>u2'), (SCENE * 65535).astype('>u2')
    key = int(grey[0, 5])
    shows(png(grey, 16, 0, (b'tRNS', struct.pack('>H', key))), np.where(grey == key, 1, GREY))
    shows(png(grey, 16, 0, (b'tRNS', struct.pack('>H', key + 1))), GREY)  # a neighbour of 16 bits is not that colour
    colour[20:40] = 0x1234
    clear = np.where((colour == 0x1234).all(2, keepdims=True), 1, SCENE)
    shows(png(colour, 16, 2, (b'tRNS', struct.pack('>3H', *[0x1234] * 3))), clear)
    colour[20:40] = 0x3412  # whose lower bytes are the upper ones of the transparent colour
    shows(png(colour, 16, 2, (b'tRNS', struct.pack('>3H', *[0x1234] * 3))), colour / 65535)


def test_grey_and_colour_with_alpha_of_sixteen_bits():
    half = np.full((SIDE, SIDE, 1), .5)
    for values, colour in ((GREY[..., None], 4), (SCENE, 6)):
        stored = (np.concatenate([values, half], 2) * 65535).astype('>u2')
        shows(png(stored, 16, colour), (values + 1) / 2 * np.ones(3), 2)


# The other formats

def test_portable_maps():
    "White is what the header says, at any depth; of floats it is 1, and lines stand upside down."
    for top in (1, 15, 255, 1023, 4095, 65535):
        kind = 'u1' if top < 256 else '>u2'
        shows(b'P5 64 64 %d\n' % top + numbers(GREY, top, kind), (GREY * top).round() / top)
        shows(b'P6 64 64 %d\n' % top + numbers(SCENE, top, kind), (SCENE * top).round() / top)
    for scale, kind in (('-1', '<f4'), ('1', '>f4')):
        shows(f'Pf\n64 64\n{scale}\n'.encode() + GREY.T[::-1].astype(kind).tobytes(), GREY.T)
    shows(b'P5 64 64 65535\n' + numbers(GREY / 300, 65535, '>u2'), GREY / 300)  # a dark picture stays dark


@pytest.mark.parametrize('alpha,expected', [(0, SCENE), (255, SCENE), (128, (SCENE * 128 + 127) / 255)], ids=['unused',
    'opaque', 'half'])
def test_bitmaps_with_alpha(alpha, expected):
    "An alpha channel that is zero everywhere is one that was not used."
    pixels = np.concatenate([BYTES[::-1, :, ::-1], np.full((SIDE, SIDE, 1), alpha, np.uint8)], 2).tobytes()
    masks = struct.pack('<4I', 0xff0000, 0xff00, 0xff, 0xff000000).ljust(84, b'\0')
    head = struct.pack('<IiiHHIIiiII', 124, SIDE, SIDE, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    shows(b'BM' + struct.pack('<IHHI', 14 + 124 + len(pixels), 0, 0, 14 + 124) + head + pixels, expected, 2)


OTHER = PICTURE.transpose(Image.Transpose.ROTATE_180)
FIRST = {'gif': saved(PICTURE.convert('L'), 'GIF', save_all=True, append_images=[OTHER.convert('L')]),
         'webp': saved(PICTURE.convert('L').convert('RGB'), 'WEBP', save_all=True, append_images=[OTHER],
         lossless=True),
         'apng': saved(PICTURE.convert('L'), 'PNG', save_all=True, append_images=[OTHER.convert('L')]),
         'tiff': saved(PICTURE.convert('L'), 'TIFF', save_all=True, append_images=[OTHER]),
         'phone': saved(PICTURE.convert('L'), 'MPO', save_all=True, append_images=[OTHER.convert('L')], quality=100)}


@pytest.mark.parametrize('name', FIRST)
def test_first_of_several(name): shows(FIRST[name], np.asarray(PICTURE.convert('L')) / 255, 2)


@pytest.mark.parametrize('mode', ['LA', 'La', 'P', 'PA', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'I', 'F',
    'LAB'])
def test_modes_in_memory(mode):
    "As the app and notebooks hand them over, without a file: the scene in this mode, grey where it has no colour."
    expected = PICTURE.convert('L').convert('RGB') if mode in ('LA', 'La', 'I', 'F') else PICTURE
    made = expected
    first = {'La': ['LA'], 'PA': ['P'], 'I': ['L'], 'F': ['L'], 'LA': ['L']}
    for step in first.get(mode, []) + [mode]: made = made.convert(step)
    if mode in ('P', 'PA'): expected = made.convert('RGB')
    difference = np.abs(np.asarray(to_rgb(made)).astype(int) - np.asarray(expected))
    assert difference.mean() < 4 if mode == 'LAB' else difference.max() <= {'YCbCr': 3, 'HSV': 9}.get(mode, 1)


# Files of other kinds

def boxes(brand, *others):
    return struct.pack('>I4s4sI', 16 + 4 * len(others), b'ftyp', brand, 0) + b''.join(others) + bytes(400)


def zipped():
    with zipfile.ZipFile(file := io.BytesIO(), 'w') as archive: archive.writestr('a.txt', 'a')
    return file.getvalue()


NAMED = {
    'AVIF': boxes(b'avif', b'mif1', b'miaf'), 'AVIF picture': boxes(b'mif1', b'avif'), 'HEIC': boxes(b'heic', b'mif1',
    b'heic'), 'HEIC picture': boxes(b'mif1', b'heic'),
    'JPEG XL': b'\xff\x0a' + bytes(99), 'a JPEG XL picture': b'\0\0\0\x0cJXL \r\n\x87\n' + bytes(99),
    'JPEG 2000': b'\0\0\0\x0cjP  \r\n\x87\n' + bytes(99),
    'a JPEG 2000 picture': b'\xff\x4f\xff\x51' + bytes(99), 'JPEG XR': b'II\xbc\x01' + bytes(99),
    'raw': b'II*\0\x10\0\0\0CR\2\0' + bytes(99), "camera's raw": boxes(b'crx '),
    'Photoshop': b'8BPS\0\1' + bytes(99), 'GIMP': b'gimp xcf v011\0',
    'SVG': b'<?xml version="1.0"?>\n<!-- Inkscape -->\n<svg width="9">', 'an SVG': b'\xef\xbb\xbf<svg>',
    'PDF': b'%PDF-1.7\n', 'PostScript': b'%!PS-Adobe', 'icon': b'\0\0\1\0\1\0', 'DDS': b'DDS |', 'OpenEXR': b'v/1\1',
    'Radiance': b'#?RADIANCE\n', 'QOI': b'qoif',
    'portable map': b'P7\nWIDTH 3\n'}


@pytest.mark.parametrize('name', NAMED)
def test_pictures_of_other_formats_are_named(name): refused(NAMED[name], name, 'convert it to JPEG or PNG')


NO_PICTURES = {'a web page': b'\n<!DOCTYPE html>\n<html>404', 'a video': boxes(b'isom', b'mp42'),
'an archive': zipped(), "Git's large files": b'version https://git-lfs.github.com/spec/v1\n',
               "macOS's notes": b'\0\5\x16\7\0\2\0\0Mac OS X', 'web page': b'<!-- saved from --><HTML><head>',
               'video': b'\x1a\x45\xdf\xa3' + bytes(99), 'archive': b'Rar!\x1a\7'}


@pytest.mark.parametrize('name', NO_PICTURES)
def test_what_is_no_picture_is_named(name): refused(NO_PICTURES[name], 'not a picture but ', name)


@pytest.mark.parametrize('kind', ['AVIF', 'JPEG2000', 'ICO', 'PDF', 'DDS'])
def test_files_of_pillows_own_writers_are_named(kind):
    needed = {'AVIF': 'avif', 'JPEG2000': 'jpg_2000'}.get(kind)
    if needed and not features.check(needed): pytest.skip(f'this Pillow writes no {kind}')
    refused(saved(PICTURE, kind), {'ICO': 'icon', 'JPEG2000': 'JPEG 2000'}.get(kind, kind), 'convert it to JPEG or PNG')


def test_read_formats_of_a_rare_kind_are_named():
    refused(tiff(numbers(SCENE, 1, '<f8'), 64, kind=3, photometric=2, samples=3), 'a rare kind of TIFF')
    refused(saved(PICTURE, 'JPEG')[:20], 'damaged or truncated, or a rare kind of JPEG')
    refused(b'RIFF\x10\0\0\0WEBPVP8Q' + bytes(30), 'WebP')


def test_files_on_disk_and_others(tmp_path):
    "By path as by open file; what has no known beginning is no picture, and an empty file is empty."
    (tmp_path / 'a.jpg').write_bytes(NAMED['HEIC'])
    with pytest.raises(BadPicture, match='a HEIC picture'): decode(tmp_path / 'a.jpg', 32)
    refused(b'', 'an empty file')
    for _ in range(20): refused(b'\7' + os.urandom(300), 'not a picture')
