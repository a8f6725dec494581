"""Installs the library ``igvg_d2``; scripts, configs and tests are used from a checkout."""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """``__version__`` of the package, read without importing it."""
    source = (ROOT / "igvg_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r"^__version__ = \"([^\"]+)\"", source, flags=re.MULTILINE).group(1)


CHECK = runpy.run_path(str(ROOT / "igvg_d2" / "requirements_check.py"))

# The formatter's style changes once a year; within one release everybody sees the same result.
LINT = ["black>=26.1,<27", "flake8>=6.0", "isort>=5.12"]
# ONNX files: onnxruntime alone answers with them, the others write them.
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"]
# pytest-xdist: make test shares the files out over the cores, which halves its time on two. The
# wheels of ONNX are 45 MB, so its tests run everywhere; OpenVINO's are 60, and nncf brings more.
TEST = ["pytest>=7.0", "pytest-xdist>=3.8", *ONNX]
EXPORT = [*ONNX, "openvino>=2025.0", "nncf>=2.15"]
# The web page, and a browser to test it in. Gradio 6 needs an older Pillow than the library.
DEMO = ["gradio>=6,<7"]
TEST_WEB = ["playwright>=1.50"]
DOCS = ["sphinx>=8.1", "myst-parser>=4.0"]

setup(
    name="igvg_d2",
    version=read_version(),
    description="Instance-aware generalized visual grounding as a Detectron2 extension",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=f">={CHECK['MIN_PYTHON']}",
    packages=find_packages(include=["igvg_d2", "igvg_d2.*"]),
    package_data={
        # Links in a checkout, files in a wheel: models by name work without the checkout.
        "igvg_d2": ["configs/*.yaml", "configs/*/*.yaml", "weights/*"],
        "igvg_d2.visualization": ["templates/*"],
    },
    # Detectron2 itself is not on PyPI under its name; requirements_check.py reports it when absent.
    install_requires=[f"{r.distributions[0]}>={r.minimum}" for r in CHECK["REQUIREMENTS"]],
    extras_require={
        "dev": LINT + TEST,
        "demo": DEMO,
        "docs": DOCS,
        # tools/export.py
        "export": EXPORT,
        # GroundingResult.to_supervision()
        "supervision": ["supervision>=0.20"],
        # Annotations of RefCOCO-M and Ref-L4.
        "parquet": ["pyarrow>=14"],
        "test-web": TEST_WEB,
        "all": LINT + TEST + DEMO + DOCS + ["mypy>=1.8"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
