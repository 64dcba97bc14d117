"""Make RSA keys, and read them, in no time. It took a quarter of the quick tests' CPU.

Product code and FLARE are imported after this.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_generate = rsa.generate_private_key


@functools.cache
def _pairs(exponent: int, bits: int) -> Iterator[tuple[int, int]]:
    """Yield each pair of primes once: those of two new keys, then of three, and so on."""

    def made() -> Iterator[tuple[int, int]]:
        primes: list[int] = []
        while True:
            numbers = _generate(exponent, bits).private_numbers()
            for prime in (numbers.p, numbers.q):
                yield from ((prime, other) for other in primes)
                primes.append(prime)

    return made()


def _new_key(public_exponent: int, key_size: int, backend: object = None) -> rsa.RSAPrivateKey:
    """Make a new key of the length that is asked for. Any two may have a prime in common."""
    p, q = next(_pairs(public_exponent, key_size))
    d = rsa.rsa_recover_private_exponent(public_exponent, p, q)
    numbers = rsa.RSAPrivateNumbers(
        p,
        q,
        d,
        rsa.rsa_crt_dmp1(d, p),
        rsa.rsa_crt_dmq1(d, q),
        rsa.rsa_crt_iqmp(p, q),
        rsa.RSAPublicNumbers(public_exponent, p * q),
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


rsa.generate_private_key = _new_key
# Without the check of a key's numbers: whether its primes are prime takes as long as to make them.
serialization.load_pem_private_key = functools.partial(
    serialization.load_pem_private_key, unsafe_skip_rsa_key_validation=True
)
