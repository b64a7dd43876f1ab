"Damaged and lying files, for all that takes strangers' pictures."
import io
import random
import struct
import zlib

from PIL import Image


def hostile(folder, picture, count=300, seed=0):
    "Damaged and lying files: mutated pictures of every format, wrong endings, bombs."
    chance = random.Random(seed)
    art = Image.open(picture).convert('RGB').resize((200, 160))
    whole = {}
    endings = {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp', 'GIF': 'gif', 'TIFF': 'tif', 'BMP': 'bmp'}
    for kind, ending in endings.items():
        art.save(file := io.BytesIO(), kind)
        whole[ending] = file.getvalue()
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    def png(width, height, data):
        head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
        return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
    Image.new('L', (4000, 4000)).save(wide := io.BytesIO(), 'JPEG', progressive=True)
    special = {'zip-bomb.png': png(30_000, 30_000, zlib.compress(bytes(10**7))), 'flat.png': png(0, 0, b''),
               'lying.png': png(6000, 6000, zlib.compress(bytes(100))),
               'scans.jpg': wide.getvalue()[:-2] + wide.getvalue()[-400:-2] * 300,
               'page.jpg': b'<html><script>alert(1)</script>',
               'drawing.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run',
               'vector.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
               'pickle.jpg': b'\x80\x04cos\nsystem\n(S"true"\ntR.', 'empty.gif': b'', 'zeros.tif': bytes(1000),
               'text.png': b'%PDF-1.4',
               'huge.bmp': b'BM' + bytes(24) + struct.pack('<ii', 2**30, 2**30) + bytes(900)}
    for name, data in special.items(): (folder/name).write_bytes(data)
    for i in range(count - len(special)):
        ending = chance.choice(list(whole))
        data = bytearray(whole[ending])
        for _ in range(chance.choice((1, 5, 60))): data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < .4: data = data[:chance.randrange(1, len(data))]
        if chance.random() < .2: ending = chance.choice(list(whole))
        (folder/f'{i:03d}.{ending}').write_bytes(data)
    return sorted(folder.iterdir())
