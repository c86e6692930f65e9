"""Our own torch modules for tests, benchmarks and examples: `MODELS` by name, small; `LARGE`, sized to be timed.

`KNOWN` are the nets that made each norm known, from `models.cnn`, `models.sequences` and `models.generative`.

Their statistics are random, from fixed seeds. This package imports torch.
"""

from functools import partial

from models import cnn, generative, sequences
from models.affine import (
    instance_norm_net,
    learnable_affine_net,
    normalized_input,
    spectral_norm_net,
    standardized_net,
    weight_norm_net,
)
from models.convolutional import UNet, conv_net_1d, conv_net_3d, dense_net, frozen_resnet, preactivation_resnet
from models.entry import Entry
from models.mobile import TextDetector, mobile_net
from models.normalized import INCEPTIONS, alexnet, googlenet, group_norm_resnet
from models.styles import AdaptiveGenerator, StyledDecoder, convnext, style_transfer
from models.tokens import LeViT, layer_scale_net, mlp

__all__ = ["KNOWN", "LARGE", "MODELS", "Entry"]

_IMAGE = ((2, 3, 32, 32),)
_BATCHES = ({0: "batch"}, {0: "batch"})
_SPATIAL = ({0: "batch", 2: "height", 3: "width"},)

MODELS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("preactivation-resnet", preactivation_resnet, _IMAGE, keeps=2),
        Entry("dense-net", dense_net, _IMAGE, keeps=6),
        Entry("unet", UNet, _IMAGE),
        Entry("levit", LeViT, _IMAGE),
        Entry("mlp", mlp, ((3, 12),)),
        Entry("frozen-resnet", frozen_resnet, ((2, 3, 64, 64),), _SPATIAL),
        Entry("conv-1d", conv_net_1d, ((2, 4, 50),)),
        Entry("conv-3d", conv_net_3d, ((2, 2, 8, 12, 10),)),
        Entry("weight-standardized", standardized_net, _IMAGE, _SPATIAL),
        Entry("weight-norm", weight_norm_net, _IMAGE),
        Entry("spectral-norm", spectral_norm_net, _IMAGE),
        Entry("instance-norm-running", instance_norm_net, _IMAGE),
        Entry("input-normalization", normalized_input, _IMAGE),
        Entry("input-normalization-padded", partial(normalized_input, padding=1), _IMAGE),
        Entry("layer-scale", layer_scale_net, _IMAGE),
        Entry("learnable-affine", learnable_affine_net, _IMAGE, _SPATIAL, keeps=2),
        Entry("resnet-gn", group_norm_resnet, _IMAGE, keeps=6),
        Entry("alexnet", alexnet, ((2, 3, 64, 64),)),
        Entry("googlenet", googlenet, _IMAGE),
        Entry("style-transfer", style_transfer, _IMAGE),
        Entry("adain-features", StyledDecoder, ((2, 32, 8, 8), (2, 32, 6, 6)), _BATCHES),
        Entry("adain-linear", AdaptiveGenerator, ((2, 16, 6, 6), (2, 8)), _BATCHES),
        Entry("convnext", convnext, _IMAGE),
        Entry("mobile-net", mobile_net, _IMAGE),
        Entry("text-detector", TextDetector, _IMAGE, keeps=6),
    )
}
"""Small models, quick to export and to check."""

_PHOTO = ((1, 3, 224, 224),)

LARGE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("levit-large", partial(LeViT, 128, 4, 16, 9, 224, 1000), _PHOTO),
        Entry("dense-net-large", partial(dense_net, 64, 32, 8, 1000), _PHOTO, keeps=18),
        Entry("preactivation-resnet-large", partial(preactivation_resnet, 64, 3, 1000), ((1, 3, 64, 64),), keeps=4),
        Entry("unet-large", partial(UNet, 24), ((1, 3, 192, 192),)),
        Entry("learnable-affine-large", partial(learnable_affine_net, 64, 6), ((1, 3, 112, 112),)),
        Entry("layer-scale-large", partial(layer_scale_net, 96, 3), _PHOTO),
        Entry("resnet-18-gn", partial(group_norm_resnet, 64, (2, 2, 2, 2), 32, 1000), _PHOTO),
        Entry("alexnet-large", partial(alexnet, 96, 1024, 224, 1000), _PHOTO),
        Entry("googlenet-large", partial(googlenet, 1, INCEPTIONS, 1000), _PHOTO),
        Entry("style-transfer-large", partial(style_transfer, 16, 5), ((1, 3, 160, 160),)),
        Entry("adain-features-large", partial(StyledDecoder, 16, 2), ((1, 128, 32, 32), (1, 128, 32, 32)), _BATCHES),
        Entry("adain-linear-large", partial(AdaptiveGenerator, 128, 3, 64), ((1, 128, 16, 16), (1, 64)), _BATCHES),
        Entry("convnext-atto", partial(convnext, 40, (2, 2, 6, 2), 1000), _PHOTO),
        Entry("mobile-net-large", partial(mobile_net, 32, 2, 1000), _PHOTO),
        Entry("text-detector-large", partial(TextDetector, 48, 2), ((1, 3, 320, 320),), keeps=12),
    )
}
"""The same architectures at a size whose latency can be measured."""

KNOWN: dict[str, Entry] = {entry.name: entry for entry in (*cnn.ENTRIES, *sequences.ENTRIES, *generative.ENTRIES)}
"""The nets that made each norm known, small."""
