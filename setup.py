"""Packaging of llamaproxy; the twistd plugin is listed by hand because nothing would find it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "llamaproxy" / "__init__.py").read_text("utf-8")
)
assert VERSION is not None

HOME = "https://github.com/llamaproxy/llamaproxy"

#: What traces need.
OTEL = [
    "opentelemetry-exporter-otlp-proto-http>=1.30",
    "opentelemetry-sdk>=1.30",
]

#: What --memory needs.
REDIS = [
    "txredisapi>=1.5",
]

setup(
    name="llamaproxy",
    version=VERSION[1],
    description="Gives any OpenAI client the tools of a Llama Stack server",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The llamaproxy developers",
    url=HOME,
    project_urls={
        "Documentation": f"{HOME}/tree/main/docs",
        "Changelog": f"{HOME}/blob/main/CHANGELOG.md",
        "Issues": f"{HOME}/issues",
        "Source": HOME,
    },
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # find_packages() does not see twisted.plugins, which has no __init__.py and must not have one.
    packages=[*find_packages(include=["llamaproxy", "llamaproxy.*"]), "twisted.plugins"],
    # Type checkers read the annotations of a package that has it (PEP 561).
    package_data={
        "llamaproxy": ["py.typed"],
        "llamaproxy.config": ["mcp.schema.json"],
        "llamaproxy.admin": ["page/*.html", "page/*.css", "page/*.js", "page/*.svg"],
    },
    install_requires=[
        "attrs>=23.2",
        "httptools>=0.6.4",
        "hyperlink>=21.0",
        "json-repair>=0.64.3",
        "klein>=24.8",
        "orjson>=3.10",
        "prometheus-client>=0.20",
        "treq>=26.7",
        "twisted[tls]>=26.4",
        "tzdata>=2024.1",
    ],
    extras_require={
        "bench": [
            "matplotlib>=3.8",
        ],
        "otel": OTEL,
        "redis": REDIS,
        "test": [
            *OTEL,
            *REDIS,
            "h11>=0.16",
            "hypothesis>=6.100",
            "jsonschema>=4.21",
            "kubernetes-validate>=1.33",
            "openai>=1.50",
            "playwright>=1.65",
            "pytest>=8.0",
            "pytest-twisted>=1.14.3",
            "pyyaml>=6.0.2",
            "setuptools>=70.1",
            "trustme>=1.2",
            "uv>=0.4",
        ],
        "dev": [
            "coverage>=7.5",
            "mypy>=1.11",
            "mypy-zope>=1.0.8",
            "types-jsonschema>=4.21",
            "ruff>=0.6",
            "towncrier>=24.8",
        ],
    },
    classifiers=[
        "Framework :: Twisted",
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
)
