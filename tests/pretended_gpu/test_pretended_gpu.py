"""The pretended GPU itself: what it refuses, what it counts, and what it keeps."""

CHECKS = "tests.pretended_gpu.gpu_checks"


def test_mixed_devices_are_refused(gpu):
    refused = gpu.call(f"{CHECKS}:mixed_devices")
    assert not refused.pop("number")  # a scalar on the CPU goes with any device
    assert not refused.pop("own")
    assert len(refused) == 7
    assert all(refused.values()), refused


def test_waits_are_counted(gpu):
    waits = gpu.call(f"{CHECKS}:number_of_waits")
    free = {"arithmetic", "to the host at once", "to the device at once", "repeat with size"}
    assert {name for name, number in waits.items() if number == 0} == free
    assert {number for name, number in waits.items() if name not in free} == {1}


def test_waits_name_their_place(gpu):
    (place, is_ours), (_, on_gpu) = gpu.call(f"{CHECKS}:place_of_a_wait")
    assert place.startswith("objectives/remember/slot_scores.py:")
    assert "_scoring < objectives/remember/slot_scores.py:" in place
    assert is_ours
    assert on_gpu


def test_checkpoints_keep_the_device_until_told_otherwise(gpu):
    assert gpu.call(f"{CHECKS}:saved_and_loaded") == {
        "cpu": "cpu",
        "function": "cpu",
        "null": "cuda:0",
        "module": "cuda:0",
        "module back": "cpu",
    }


def test_autocast_is_that_of_cuda(gpu):
    assert gpu.call(f"{CHECKS}:autocast") == ["torch.bfloat16", "torch.float32"]
