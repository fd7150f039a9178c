"""Models in the formats of others: ONNX, NIR, timm's registry, folders of the Hugging Face hub.

Invariant: importing the room imports none of their libraries; each adapter does when it is called,
but for `export.timm`, whose import is the registration.
"""
