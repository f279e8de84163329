"""Small runs of benchmarks/memory.py and gpu.py: what they say is true at tiny size too."""

from benchmarks import gpu, memory


def test_few_bits_keep_what_the_whole_base_keeps() -> None:
    """Within 1.2 x for backward; a dequantised weight beforehand would keep far more."""
    options = memory.options_of(["--pixels", "64", "--rounds", "1", "--steps", "1", "--rank", "4"])
    rows = {(row["base"], row["checkpointing"]): row for row in memory.measure(options)}
    assert len(rows) == 2 * len(memory.BASES)
    full, naive = rows["full", False], rows["int8, dequantised first", False]
    for base, least in (("int8", 0.998), ("fp8", 0.99), ("nf4", 0.98)):
        plain, checked = rows[base, False], rows[base, True]
        assert plain["kept_mib"] <= 1.2 * full["kept_mib"] < naive["kept_mib"]
        assert checked["kept_mib"] < 0.5 * plain["kept_mib"]
        assert min(plain["cosine_to_usual"], checked["cosine_to_usual"]) > least
        assert plain["cosine"] > 0.98
        assert plain["denoiser_mib"] < 0.8 * full["denoiser_mib"]
    for base, cosine in (("streamed", 0.9999), ("int8, streamed", 0.998)):
        plain, checked = rows[base, False], rows[base, True]
        assert plain["kept_mib"] == checked["kept_mib"] < 0.5 * full["kept_mib"]
        assert plain["denoiser_mib"] < 0.5 * full["denoiser_mib"]
        assert min(plain["cosine_to_usual"], checked["cosine_to_usual"]) > cosine
    assert all(row["step_ratio"] > 0 for row in rows.values())


def test_the_gpu_script_runs_whole_without_one() -> None:
    options = gpu.options_of(["--pixels", "64", "--steps", "1", "--device", "cpu", "--rank", "4"])
    table = gpu.measure("small", options)
    assert list(table) == ["full", "int8", "fp8", "nf4", "streamed", "int8, streamed"]
    for base, row in table.items():
        assert (base == "full") == (row["weights"] == "as usual")
        assert list(row["generating"]) == ["0 LoRAs", "1 LoRAs", "4 LoRAs"]
        assert all(found["steps/s"] > 0 for found in row["generating"].values())
        assert all(found["images/s"] > 0 for found in row["training"].values())
