"""Pictures of every kind that there is, made by hand where no library writes them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (45, 61)  # of no whole blocks of a JPEG
NUM_CLASSES = 19


def smooth_image(seed=0, channels=3):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, channels), np.uint8)
    return np.stack(
        [Image.fromarray(c).resize(SIZE[::-1], Image.Resampling.BICUBIC) for c in coarse.T], -1
    ).astype(np.uint8)


def some_label(seed=0):
    label = np.random.default_rng(seed).integers(0, NUM_CLASSES, SIZE).astype(np.uint8)
    label[0, 0] = 255
    return label


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(depth, color, rows, extra=b"", late=b"", pieces=1):
    """A PNG made by hand: rows of bytes, more chunks before and behind the pixels."""
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, color, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    step = -(-len(packed) // pieces)
    pixels = b"".join(chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + extra + pixels + late + chunk(b"IEND", b"")


def rgb_rows(seed=0):
    return [row.tobytes() for row in smooth_image(seed)]


def saved(picture, image_format, **kwargs):
    file = io.BytesIO()
    picture.save(file, image_format, **kwargs)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
        f'tiff:Orientation="{orientation}"/></x:xmpmeta>'
    )


def png_with_text(key, value):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, value)
    return saved(Image.fromarray(smooth_image()), "PNG", pnginfo=info)


def animated():
    frames = [Image.fromarray(smooth_image(seed)) for seed in range(3)]
    return saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


def images():
    """{what it is: (bytes, suffix, whether TensorFlow reads it)}."""
    rgb, grey = Image.fromarray(smooth_image()), Image.fromarray(smooth_image()[..., 0])
    rgba, la = (Image.fromarray(smooth_image(1, c)) for c in (4, 2))
    found = {}
    for sampling in (0, 1, 2):
        found[f"jpeg sampling {sampling}"] = (
            saved(rgb, "JPEG", quality=90, subsampling=sampling), "jpg", True
        )  # fmt: skip
    plain = {
        "jpeg low quality": saved(rgb, "JPEG", quality=20),
        "jpeg progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg restarts": saved(rgb, "JPEG", restart_marker_blocks=2),
        "jpeg grey": saved(grey, "JPEG"),
        "jpeg grey progressive": saved(grey, "JPEG", progressive=True),
        "jpeg stored as RGB": saved(rgb, "JPEG", keep_rgb=True),
        "jpeg upright by EXIF": saved(rgb, "JPEG", exif=turned(1)),
        "jpeg with bytes behind": saved(rgb, "JPEG") + b"behind",
        "jpeg ICC": saved(rgb, "JPEG", icc_profile=b"\0" * 200),
        "png": saved(rgb, "PNG"),
        "png grey": saved(grey, "PNG"),
        "png alpha": saved(rgba, "PNG"),
        "png grey alpha": saved(la, "PNG"),
        "png transparent colour": saved(rgb, "PNG", transparency=(1, 2, 3)),
        "png grey transparent colour": saved(grey, "PNG", transparency=int(grey.getpixel((3, 3)))),
        "png gamma": raw_png(8, 2, rgb_rows(), chunk(b"gAMA", struct.pack(">I", 45455))),
        "png other gamma": raw_png(8, 2, rgb_rows(), chunk(b"gAMA", struct.pack(">I", 100000))),
        "png many pieces": raw_png(8, 2, rgb_rows(), pieces=40),
        "png text behind": raw_png(8, 2, rgb_rows(), late=chunk(b"tEXt", b"date\0now")),
    }
    for name, contents in plain.items():
        found[name] = contents, "jpg" if name.startswith("jpeg") else "png", True
    tail = turned(3).tobytes()[6:]
    odd = {
        "jpeg CMYK": (saved(rgb.convert("CMYK"), "JPEG"), "jpg"),
        "png palette": (saved(rgb.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), "png"),
        "png palette transparent": (
            saved(rgb.convert("P"), "PNG", transparency=bytes(range(256))),
            "png",
        ),
        "png one bit": (saved(grey.convert("1"), "PNG"), "png"),
        "png two bits": (raw_png(2, 0, [b"\x1b" * 16] * SIZE[0]), "png"),
        "png four bits": (raw_png(4, 0, [b"\x1b" * 31] * SIZE[0]), "png"),
        "png 16-bit RGB": (raw_png(16, 2, [b"\x12\xef" * 183] * SIZE[0]), "png"),
        "png turned": (saved(rgb, "PNG", exif=turned(3)), "png"),
        "png turned behind": (raw_png(8, 2, rgb_rows(), late=chunk(b"eXIf", tail)), "png"),
        "png turned behind many": (
            raw_png(8, 2, rgb_rows(), late=chunk(b"eXIf", tail), pieces=9),
            "png",
        ),
        "png turned by XMP": (png_with_text("XML:com.adobe.xmp", xmp(3)), "png"),
        "png turned by XMP behind": (
            raw_png(
                8,
                2,
                rgb_rows(),
                late=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(3).encode()),
            ),
            "png",
        ),
        "png animated": (animated(), "png"),
        "jpeg turned by XMP": (saved(rgb, "JPEG", xmp=xmp(3).encode()), "jpg"),
        "bmp": (saved(rgb, "BMP"), "bmp"),
        "bmp grey": (saved(grey, "BMP"), "bmp"),
        "webp": (saved(rgb, "WEBP", lossless=True), "webp"),
        "webp lossy": (saved(rgb, "WEBP"), "webp"),
        "gif named png": (saved(rgb, "GIF"), "png"),
    }
    for orientation in (2, 3, 4):
        odd[f"jpeg turned {orientation}"] = saved(rgb, "JPEG", exif=turned(orientation)), "jpg"
    found.update({name: (*file, False) for name, file in odd.items()})
    # By what a file is, not by what it is called.
    found["png named jpg"] = plain["png"], "jpg", True
    found["jpeg named png"] = plain["jpeg grey"], "png", True
    return found


def labels():
    """{what it is: (bytes, whether TensorFlow reads it)}; the ids are `some_label`'s."""
    label = some_label()
    picture = Image.fromarray(label)
    with_palette = Image.fromarray(label)
    with_palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    rows = [row.tobytes() for row in label]
    clear = chunk(b"tRNS", struct.pack(">H", 3))
    wide = np.where(label == 255, 255, label).astype(np.uint16)
    return {
        "grey": (saved(picture, "PNG"), True),
        "grey transparent id": (raw_png(8, 0, rows, clear), True),
        "grey gamma": (raw_png(8, 0, rows, chunk(b"gAMA", struct.pack(">I", 100000))), True),
        "palette": (saved(with_palette, "PNG"), False),
        "16 bits": (saved(Image.fromarray(wide), "PNG"), False),
    }


def write(root, name, image, suffix, label):
    for kind, contents, ending in (("images", image, suffix), ("labels", label, "png")):
        folder = root / "train" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{ending}").write_bytes(contents)
