import asyncio

import pytest

from ganserve.errors import StartupError
from ganserve.repository.model_tasks import ModelTasks
from tests.ganserve.conftest import settle


async def fail_or_wait(name, _):
    """Fail for the model `bad`, take for ever with all others."""
    if name == "bad":
        raise StartupError("there is no such device")
    await asyncio.Event().wait()


async def test_a_fault_is_raised_at_once_though_other_models_are_busy():
    tasks = ModelTasks(fail_or_wait, lambda: None)
    tasks.begin("bad", [])
    tasks.begin("good", [])
    async with asyncio.timeout(20):
        with pytest.raises(StartupError):
            await tasks.wait(None)
    assert tasks.names == {"good"}
    await tasks.cancel()


@pytest.mark.parametrize("name", ["bad", "good"])
async def test_a_model_that_failed_or_was_left_as_it_is_is_not_up_to_date(name):
    loop, told, idle = asyncio.get_running_loop(), [], []
    loop.set_exception_handler(lambda _, context: told.append(context))
    tasks = ModelTasks(fail_or_wait, lambda: idle.append(name))
    tasks.begin(name, [])
    await settle()
    await tasks.cancel()
    await settle()
    assert (told, idle) == ([], [])
    assert tasks.names == set()
