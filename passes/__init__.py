"""The stages of the pipeline, each an `onnx_ir.passes.InPlacePass`, and the tables of their rules."""
