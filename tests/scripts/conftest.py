from tests.scripts.google import google, nobody, service_account_key

__all__ = ["google", "nobody", "service_account_key"]
