"""The contract between infra/ and trainer/: specs, names and formulas. Only the standard library and pydantic."""
