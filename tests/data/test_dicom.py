"""DICOM: what the numbers mean, what is refused in a sentence, and real files as pydicom itself reads them."""

import builtins
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from audit.config import DataConfig
from audit.data.describe import describe
from audit.data.dicom import Window
from audit.data.images import Conversion, decode_stored, read_header, read_image
from audit.data.load import load_data
from audit.errors import DataError

pydicom = pytest.importorskip("pydicom", reason="extra dicom")
DEEP = np.array([[0, 1, 2048], [4000, 4095, 4080]], dtype=np.uint16)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return `write(name, values, **elements)`, which writes a DICOM file of 12 bits below tmp_path."""

    def save(name: str, values: np.ndarray = DEEP, **elements: Any) -> Path:
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
        image.Rows, image.Columns = values.shape[:2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 8 * values.dtype.itemsize, 12, 11
        image.PixelRepresentation = int(values.dtype.kind == "i")
        image.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
        for element, value in elements.items():
            setattr(image, element, value)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path, enforce_file_format=True)
        return path

    return save


def pixels_of(path: Path, white: float | None = None, window: Window | None = None) -> np.ndarray:
    return read_image(0, (path,), Conversion(None, None, white, window))


def shipped(name: str) -> Path:
    return Path(pydicom.data.get_testdata_file(f"{name}.dcm", download=False))


def test_unsigned_numbers_are_divided_by_the_depth(write: Write) -> None:
    path = write("a.dcm")
    np.testing.assert_allclose(pixels_of(path), DEEP / 4095, rtol=1e-6)
    np.testing.assert_allclose(pixels_of(path, white=4000), np.minimum(DEEP / 4000, 1), rtol=1e-6)
    assert read_header(path).kind == "DICOM 12-bit grey"
    with pytest.raises(DataError, match=r"holds no number above 4095 where data\.white is 65535"):
        pixels_of(path, white=65535)


def test_bytes_stay_bytes_and_16_bits_end_at_65535(write: Write) -> None:
    eight = write("a.dcm", DEEP.astype(np.uint8), BitsStored=8, HighBit=7)
    assert pixels_of(eight).dtype == np.uint8
    deep = write("b.dcm", DEEP * 16, BitsStored=16, HighBit=15, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_allclose(pixels_of(deep), DEEP * 16 / 65535, rtol=1e-6)


def test_monochrome1_is_inverted_with_and_without_a_window(write: Write) -> None:
    path = write("a.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(pixels_of(path), 1 - DEEP / 4095, atol=1e-6)
    straight = pixels_of(write("b.dcm"), window=(2048.0, 1000.0))
    np.testing.assert_allclose(pixels_of(path, window=(2048.0, 1000.0)), 1 - straight, atol=1e-6)
    assert read_header(path).kind == "DICOM 12-bit grey, 0 is white"


def test_a_window_is_in_rescaled_units(write: Write) -> None:
    path = write("a.dcm", RescaleSlope=2, RescaleIntercept=-1024)
    units = DEEP.astype(float) * 2 - 1024
    expected = ((units - 39.5) / 399 + 0.5).clip(0, 1)
    np.testing.assert_allclose(pixels_of(path, window=(40.0, 400.0)), expected, atol=1e-6)
    assert read_header(path, (40.0, 400.0)).kind == "DICOM 12-bit grey, window 40 / 400"


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_of_a_file_is_what_pydicom_makes_of_it(write: Write, function: str | None) -> None:
    elements = {} if function is None else {"VOILUTFunction": function}
    path = write("a.dcm", WindowCenter=[2000, 7], WindowWidth=[3000, 9], **elements)
    image = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_windowing(image.pixel_array, image) / 4095
    np.testing.assert_allclose(pixels_of(path, window="file"), expected, atol=1e-6)


def test_the_table_of_a_file_is_its_window(write: Write) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 10], [1023 - value // 4 for value in range(4096)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = write("a.dcm", VOILUTSequence=[table])
    np.testing.assert_allclose(pixels_of(path, window="file"), (1023 - DEEP // 4) / 1023, atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "window", "said"),
    [
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, None, r"rescaled.*\[40, 400\] for soft tissue"),
        ({"PixelRepresentation": 1}, None, "holds signed numbers, whose black and white are unknown"),
        ({}, "file", "has no window of its own"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "file", "a window of width 0"),
        ({"NumberOfFrames": 3}, None, "holds 3 frames: save the one to audit"),
        ({"Rows": 60000, "Columns": 60000}, None, "claims 60000 x 60000 pixels"),
        ({"BitsStored": None}, None, "DICOM without an image"),
        ({"Rows": 4000}, None, "cannot be decoded as DICOM"),
    ],
)
def test_what_has_no_meaning_is_refused(
    write: Write, elements: dict[str, Any], window: Window | None, said: str
) -> None:
    path = write("a.dcm", **elements)
    with pytest.raises(DataError, match=said):
        decode_stored(path, window)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("JPEGLSNearLossless_08", "no decoder is installed: run `pip install python-gdcm`"),
        ("image_dfl", "deflated DICOM file"),
        ("rtplan", "DICOM without an image"),
        ("no_meta", "no DICOM file"),
        ("meta_missing_tsyntax", "which is none of images"),
    ],
)
def test_a_real_file_that_cannot_be_taken(name: str, said: str) -> None:
    if name.startswith("JPEGLS") and pydicom.pixels.get_decoder(pydicom.uid.JPEGLSNearLossless).is_available:
        pytest.skip("a decoder of JPEG-LS is installed")
    with pytest.raises(DataError, match=said):
        read_header(shipped(name))


def test_real_files_of_ct_mr_and_colour() -> None:
    ct = pydicom.dcmread(shipped("CT_small"))
    units = ct.pixel_array.astype(float) * ct.RescaleSlope + ct.RescaleIntercept
    found = pixels_of(shipped("CT_small"), window=(40.0, 400.0))
    np.testing.assert_allclose(found, ((units - 39.5) / 399 + 0.5).clip(0, 1), atol=1e-6)
    same = [pixels_of(shipped(name), window="file") for name in ("MR_small", "MR_small_RLE", "MR_small_bigendian")]
    assert same[0].shape == (64, 64)
    for other in same[1:]:
        np.testing.assert_array_equal(other, same[0])
    uncompressed = pixels_of(shipped("SC_rgb_jpeg_dcmd"))
    assert uncompressed.dtype == np.uint8
    assert np.abs(pixels_of(shipped("SC_rgb_jpeg")).astype(int) - uncompressed).max() <= 2
    assert pixels_of(shipped("examples_palette")).shape == (350, 800, 3)


def fill(write: Write, folder: str, **elements: Any) -> None:
    for label, level in (("healthy", 100), ("ill", 3000)):
        for number in range(3):
            values = np.full((8, 8), level + number, np.uint16)
            values[0, 0] = 4095
            write(f"{folder}/test/{label}/{number}.dcm", values, **elements)
            write(f"{folder}/calibration/{label}/{number}.dcm", values + 10, **elements)


def test_class_folders_a_zip_and_a_manifest_read_alike(write: Write, tmp_path: Path) -> None:
    fill(write, "set")
    folder = load_data(DataConfig(path=str(tmp_path / "set")), seed=0)
    assert folder.class_names == ("healthy", "ill")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted((tmp_path / "set").rglob("*.dcm")):
            archive.write(file, file.relative_to(tmp_path / "set"))
    zipped = load_data(DataConfig(path=str(tmp_path / "set.zip")), seed=0)
    np.testing.assert_array_equal(zipped.images(), folder.images())
    rows = ["image,label,split"]
    for name, label in zip(folder.ids, folder.labels, strict=True):
        # Files of an archive of images have no ending more often than not.
        bare = tmp_path / "set" / name.removesuffix(".dcm")
        (tmp_path / "set" / name).rename(bare)
        rows.append(f"set/{bare.relative_to(tmp_path / 'set')},{folder.class_names[label]},{name.split('/')[0]}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    listed = load_data(DataConfig(path=str(tmp_path / "set.csv")), seed=0)
    np.testing.assert_array_equal(listed.images(), folder.images())


def test_a_window_that_is_not_applied_is_said(write: Write, tmp_path: Path) -> None:
    fill(write, "set", WindowCenter=2048, WindowWidth=4096)
    config = DataConfig(path=str(tmp_path / "set"))
    found = describe(load_data(config, seed=0), "test", "calibration")
    assert found.read.kinds == {"DICOM 12-bit grey, own window not applied": 12}
    assert "12 of 12 images carry a window" in next(notice.text for notice in found.notices if notice.kind == "window")
    windowed = describe(load_data(config.model_copy(update={"window": "file"}), seed=0), "test", "calibration")
    assert windowed.read.kinds == {"DICOM 12-bit grey, window of the file": 12}
    assert not [notice for notice in windowed.notices if notice.kind == "window"]


def test_a_window_where_there_is_no_dicom_is_refused(save_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png", "a/1.png", "b/1.png"):
        save_image(f"set/{name}")
    with pytest.raises(DataError, match=r"data\.window is for DICOM files, and there is none in folder"):
        load_data(DataConfig(path=str(tmp_path / "set"), window="file"), seed=0)
    with pytest.raises(DataError, match=r"data\.window is for DICOM files, and data of format 'phantom'"):
        load_data(DataConfig(path="phantom", window="file"), seed=0)


@pytest.mark.parametrize("given", [{"window": [40, 1]}, {"window": "own"}, {"window": [40, 400], "white": 255}])
def test_a_window_that_cannot_be_meant(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="window"):
        DataConfig(path="set", **given)


def test_a_mask_is_no_dicom(write: Write, tmp_path: Path) -> None:
    fill(write, "set")
    write("masks/test/ill/0.dcm", np.zeros((8, 8), np.uint16))
    with pytest.raises(DataError, match=r"0\.dcm' is DICOM: save it as PNG"):
        load_data(DataConfig(path=str(tmp_path / "set"), masks=str(tmp_path / "masks")), seed=0)


def test_without_pydicom_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = write("a.dcm"), builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("pydicom"):
            raise ModuleNotFoundError(f"No module named '{name}'", name="pydicom")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(DataError, match=r"needs pydicom: run `pip install 'spruce-audit\[dicom\]'`"):
        read_header(path)
