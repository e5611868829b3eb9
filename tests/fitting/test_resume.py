"""Interrupted anywhere and run again, a fit ends with the same bytes, in the first pass and in the second."""

import pytest
from recipes_for_tests import tiny_recipe

from compress.fitting import run
from compress.progress import silent

FILES = ("model.safetensors", "config.json", "modeling_compress.py", "tokenizer.json")


class Interrupted(BaseException):
    """As KeyboardInterrupt: no Exception, so that nobody handles it on the way."""


def units(output):
    return list((output.with_name(f"{output.name}.work") / "units").glob("*.safetensors"))


@pytest.mark.parametrize("allowed", range(4))
def test_interrupted_after_any_unit_ends_with_the_same_bytes(folders, tmp_path, allowed):
    source = folders("qwen2")
    step = {"method": "feature_space", "targets": {"roles": ["q", "down"]}, "rank": {"keep": 0.5}}
    whole = run.fit(tiny_recipe(source, tmp_path / "whole", step))
    broken = tmp_path / "broken"
    recipe = tiny_recipe(source, broken, step)

    def die(*args, **more):
        if len(units(broken)) == allowed:
            raise Interrupted

    def dying(description, total):
        die()
        return die

    with pytest.raises(Interrupted):
        run.fit(recipe, progress=dying)
    assert not (broken / "config.json").exists()
    assert len(units(broken)) == allowed
    run.fit(recipe)
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_second_pass_resumes_with_the_same_bytes(folders, tmp_path):
    source = folders("qwen2")
    step = {"method": "feature_space", "importance": "fisher", "rank": {"budget": 0.5}, "form": "pivoted"}
    more = {"propagate_error": True, "refine": {"steps": 5}}
    whole = run.fit(tiny_recipe(source, tmp_path / "whole", step, **more))
    recipe = tiny_recipe(source, tmp_path / "broken", step, **more)

    def die(*args, **more):
        raise Interrupted

    with pytest.raises(Interrupted):  # after the first of two layers
        run.fit(recipe, progress=lambda what, total: die if what == "refine layers" else silent(what, total))
    assert not (tmp_path / "broken" / "config.json").exists()
    broken = run.fit(recipe)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
