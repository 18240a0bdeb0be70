"""Reads config files for Hydra as its own source of files does, but with libyaml, in a tenth of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

__all__ = ["reading_with_libyaml"]


class LibyamlFiles(FileConfigSource):
    """Hydra's source of files, with the C parser in OmegaConf's loader."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a config file by its path in the directory.

        Raises:
            ConfigLoadError: there is none.
        """
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_loader())
        return ConfigResult(
            config=OmegaConf.create({} if content is None else content),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text[:512]),
        )


def _loader() -> Any:
    from yaml._yaml import CParser

    loader: Any = get_yaml_loader()

    class Loader(CParser, loader):  # type: ignore[misc]
        """OmegaConf's loader, a yaml.SafeLoader: it decides what a value means and which keys are refused."""

        def __init__(self, stream: Any) -> None:
            CParser.__init__(self, stream)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    return Loader


@contextmanager
def reading_with_libyaml() -> Iterator[None]:
    """Let Hydra read files this way in the block, where PyYAML has libyaml."""
    if not yaml.__with_libyaml__:
        yield
        return
    sources = SourcesRegistry.instance().types
    before = sources["file"]
    sources["file"] = LibyamlFiles
    try:
        yield
    finally:
        sources["file"] = before
