"""Looking up models: once for all who ask, to its end, and not again and again where it fails."""

import asyncio
from typing import Any

import pytest

from stratum_models.errors import UserError
from stratum_models.package import Manifest
from stratum_serve.config import ModelConfig
from stratum_serve.directory import Directory, Target
from stratum_serve.names import Reference
from stratum_serve.problems import Problem

ORE = Reference(name="ore")


class Site:
    """A source and a loader that say how often they were asked."""

    def __init__(self) -> None:
        self.found = self.loaded = 0
        self.broken = False
        self.may = asyncio.Event()
        self.may.set()

    def find(self, model: ModelConfig, which: str) -> Target:
        self.found += 1
        if which == "unreadable":
            raise UserError("its manifest is damaged")
        manifest = Manifest(preset="losnet_debug", classes=("ore",), num_classes=1, task="instance")
        uri, number = f"models:/ore/{self.found}", str(self.found)
        return Target(name=model.name, uri=uri, manifest=manifest, manifest_sha256="0" * 64, version=number)

    async def load(self, target: Target) -> None:
        self.loaded += 1
        await self.may.wait()
        if self.broken:
            raise Problem("model-broken", "its weights are damaged")

    def directory(self, patience: float = 60.0, **values: Any) -> Directory:
        return Directory([ModelConfig(name="ore", **values)], self, self.load, patience)


def test_all_who_ask_share_one_look_which_goes_on_without_them() -> None:
    async def main() -> None:
        site = Site()
        site.may.clear()
        directory = site.directory()
        waiting = [asyncio.create_task(directory.resolve(ORE)) for _ in range(5)]
        while not site.loaded:
            await asyncio.sleep(0.001)
        for one in waiting[:3]:
            one.cancel()
        await asyncio.sleep(0)
        site.may.set()
        targets = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in targets] == [asyncio.CancelledError] * 3 + [Target] * 2
        assert (await directory.resolve(ORE)).version == "1"
        assert (site.found, site.loaded) == (1, 1)

    asyncio.run(main())


@pytest.mark.parametrize("which", ["", "unreadable"])
def test_a_failure_is_believed_for_a_while(which: str) -> None:
    reference = Reference(name="ore", which=which)

    async def asked(directory: Directory) -> list[Any]:
        found = await asyncio.gather(*(directory.resolve(reference) for _ in range(4)), return_exceptions=True)
        return [one.kind if isinstance(one, Problem) else one for one in found]

    async def main() -> None:
        site = Site()
        site.broken = True
        directory = site.directory()
        assert await asked(directory) + await asked(directory) == ["model-broken"] * 8
        assert site.found == 1
        site.broken = False
        if which:
            return
        await directory.refresh()  # which looks all the same
        assert [one.version for one in await asked(directory)] == ["2"] * 4
        eager = site.directory(patience=0)
        site.broken = True
        assert await asked(eager) + await asked(eager) == ["model-broken"] * 8
        assert site.found == 4

    asyncio.run(main())


def test_canaries_and_shadows_are_there_before_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratum_serve.directory.FORGET_SECONDS", -1.0)

    async def main() -> None:
        site = Site()
        directory = site.directory(canary={"to": "next", "share": 0.1}, shadow={"to": "3", "share": 1.0})
        await directory.refresh()
        assert (site.found, site.loaded) == (3, 3)
        targets = [await directory.resolve(Reference(name="ore", which=which)) for which in ("", "next", "3")]
        assert [one.version for one in targets] == ["1", "2", "3"]
        await directory.resolve(Reference(name="ore", which="other"))
        await directory.refresh()  # which forgets what nobody has configured, or asked for in a while
        assert {str(reference) for reference in directory._entries} == {"ore", "ore@next", "ore@3"}

    asyncio.run(main())
