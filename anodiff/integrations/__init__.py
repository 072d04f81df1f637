"""anodiff inside other workflows: MONAI pipelines, scikit-learn estimators, Ray Data, ONNX and torch.export programs.

Each module imports what it works with; this one imports nothing.
"""
