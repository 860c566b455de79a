"""Certificates of `localhost` with keys that OpenSSL makes and gRPC cannot use, each with its key, for a hundred years.

openssl req -x509 -newkey rsa:512 -nodes -days 36500 -subj /CN=localhost -keyout KEY -out CERTIFICATE
openssl req -x509 -newkey rsa-pss -pkeyopt rsa_keygen_bits:1024 ...
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit ...
"""

import base64

from benchmarks.certificates import Pair

RSA_512 = Pair(
    b"""-----BEGIN CERTIFICATE-----
MIIBezCCASWgAwIBAgIUW+vIvq82+mO+hnw/hyLA4aLNjJcwDQYJKoZIhvcNAQEL
BQAwFDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODE0MTgwNFoYDzIxMjYx
MTA0MTQxODA0WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwXDANBgkqhkiG9w0BAQEF
AANLADBIAkEA5QhMVjO2lVdyNmsj6BFzFOeszGWbpq+uP1RmyFS07ycR4yHdCmQW
Z3NI1ufkEwygJQzoEESGDFhD8S+Xpqj2cQIDAQABo00wSzAdBgNVHQ4EFgQUSfry
GPG/w10Nzr+JjJqyF5ALTOowHwYDVR0jBBgwFoAUSfryGPG/w10Nzr+JjJqyF5AL
TOowCQYDVR0TBAIwADANBgkqhkiG9w0BAQsFAANBAB7+69+WXMphKkpvOTTKUvt3
WivqcZPv81Rk5MHFZCeAFKyoST33FQa5yRUjfmxQnvmMku1H/2D3asphHJwSBaQ=
-----END CERTIFICATE-----
""",
    b"""-----BEGIN PRIVATE KEY-----
MIIBVAIBADANBgkqhkiG9w0BAQEFAASCAT4wggE6AgEAAkEA5QhMVjO2lVdyNmsj
6BFzFOeszGWbpq+uP1RmyFS07ycR4yHdCmQWZ3NI1ufkEwygJQzoEESGDFhD8S+X
pqj2cQIDAQABAkAV35QCy4+NdbuHrPXR7RCzl2iuYKnb4n1euP3T9hsNl9xiJVmp
1TasEYAFFLP+b9EfJ3ft1Mb+bg4LpsGH60ydAiEA8klo9rrWF3U1/NE/3M1aPTe7
rcxH368bsLD2h5/4WOMCIQDx/tc3FTwXWkjoxbLIR2GqbF91MRpE+F9c0tIQ8HJX
mwIhAKxoNovTucLpgihMEkCh1APZ4/AxfDec2HxsAJHT8Jn3AiAZsjTKHZAe7rBV
P0DnsWS2gwFz4T3n2vPNWHmD4PRTRwIgahPjqz7Q053bXHffO6jWsAVdmsljBzlu
/zsQBpFAh+s=
-----END PRIVATE KEY-----
""",
)
RSA_PSS = Pair(
    b"""-----BEGIN CERTIFICATE-----
MIICZjCCAZugAwIBAgIURWR0jinPcmZCbd6GUHJxMr+Zcj0wQQYJKoZIhvcNAQEK
MDSgDzANBglghkgBZQMEAgEFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgEF
AKIDAgFeMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDAgFw0yNjExMjgxNDE4MDdaGA8y
MTI2MTEwNDE0MTgwN1owFDESMBAGA1UEAwwJbG9jYWxob3N0MIGdMAsGCSqGSIb3
DQEBCgOBjQAwgYkCgYEAqrYIh7SM0dITmQO0QxccWNRNM7ZkCMMh5G90XNV+A72a
B4aPaE1R8MYHXhVPmM/gnCMwVvcupgTyeZVkbfoa9UMgwRXBKIT5nKi52bLfGmIT
NXvZacrAJGEx/vQB7rpb0fSH51Q4LOAJ9nV7T93fRBgQZ/VyJ+9Hh2UmG4CTUxcC
AwEAAaNNMEswHQYDVR0OBBYEFKkbdiv9RscE4Fh00IasMOidqIYmMB8GA1UdIwQY
MBaAFKkbdiv9RscE4Fh00IasMOidqIYmMAkGA1UdEwQCMAAwQQYJKoZIhvcNAQEK
MDSgDzANBglghkgBZQMEAgEFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgEF
AKIDAgFeA4GBADZ+vOJRUk3/IOiNdZhoSsg8dAm+Ds+TQomu0bslyKYZ8yECmZzE
dqv82TGlinApSeDJdpS7i8I5DMfMjo9YMGFe+pWnXqYwq5qu2XRu4AMD/UpYgZD7
0C91PsWuMGfkWNX1hWGvivvJCPf1ZLMRcv3vRqESYBoxNEVW2ed9X1wn
-----END CERTIFICATE-----
""",
    b"""-----BEGIN PRIVATE KEY-----
MIICdQIBADALBgkqhkiG9w0BAQoEggJhMIICXQIBAAKBgQCqtgiHtIzR0hOZA7RD
FxxY1E0ztmQIwyHkb3Rc1X4DvZoHho9oTVHwxgdeFU+Yz+CcIzBW9y6mBPJ5lWRt
+hr1QyDBFcEohPmcqLnZst8aYhM1e9lpysAkYTH+9AHuulvR9IfnVDgs4An2dXtP
3d9EGBBn9XIn70eHZSYbgJNTFwIDAQABAoGAIBlYY0QE0pNA0h3LMG5RCzboSVf7
WVZvsgdvBuGx7zwgkVew8XjQdoiV7A/vxpkX7+QB++hAokD94vS/TJqhpLuqWptF
EKmtCnspEnTOQrTCcvnzenws6c+obI/IltGQqjhNuGpjcKGL7ubqelsu/u81yxrc
qk7c0Q/JDSTiawECQQDgMar7ouBEXB2pQXgkKtpa346FzT96FK9ynMoRu6SeZBNa
6QyCD3G2PU5JaBuJyM/xdt35V2VcI31X5eJdFFWBAkEAwu31eUAABqlVh00N3GJz
nCY3f9qWzhM5Vv0n6p9l7DKqHg6a1ZGuiGn9uSpMtB6NnZmNoJ6xd3eNj3tTwG7k
lwJBALG27WCXFctacbCvUvrodTo/qAxsTHsLVqA1pQA1jCJ6FdWkkuOuNmdNZXdO
7TVlV2CC5yY1nwVQpJU+hxddfQECQF5KJqRY/eo6/MEu15aUFOIiZlQ1Ex9pkyHt
4OIP6ohfVYSmgeTuzCL2SiHIQUQbR1tFjIl2Wde0/8e42yFJQs8CQQCIraUCRovd
/2+4iM4VaemXtrQpNMirhKgU1Yxv/2HEAkvu8yOhHRM1V5sZo4lV+ZZS1Crz0OT9
fJ2LHlKK/UuF
-----END PRIVATE KEY-----
""",
)
EXPLICIT_CURVE = Pair(
    b"""-----BEGIN CERTIFICATE-----
MIICbjCCAhOgAwIBAgIUL85UiCAIz9NpbY/R+O4nOBFTpvswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODE0MTgwOFoYDzIxMjYxMTA0
MTQxODA4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwggFLMIIBAwYHKoZIzj0CATCB
9wIBATAsBgcqhkjOPQEBAiEA/////wAAAAEAAAAAAAAAAAAAAAD/////////////
//8wWwQg/////wAAAAEAAAAAAAAAAAAAAAD///////////////wEIFrGNdiqOpPn
s+u9VXaYhrxlHQawzFOw9jvOPD4n0mBLAxUAxJ02CIbnBJNqZnjhE50mt4GffpAE
QQRrF9Hy4SxCR/i85uVjpEDydwN9gS3rM6D0oTlF2JjClk/jQuL+Gn+bjufrSnwP
nhYrzjNXazFezsu2QGg3v1H1AiEA/////wAAAAD//////////7zm+q2nF56E87nK
wvxjJVECAQEDQgAEpvmJiufV4d/CguaAyNi3t45AtIkzTzF4GBcRwYknBLNaP8UV
3oKpn4SXwpCfAbhDhsYi3PcrrnmqEggIg/8INKNNMEswHQYDVR0OBBYEFP48or0Q
11zNRCwNXwvXj05eujvCMB8GA1UdIwQYMBaAFP48or0Q11zNRCwNXwvXj05eujvC
MAkGA1UdEwQCMAAwCgYIKoZIzj0EAwIDSQAwRgIhANP7g+Hu1B66QzCRDSbs9/cN
4Ryj1kQWv01+S9RGbanOAiEAjsfeUEQ1MpB7pW3/IhpYL4NjbPHQot9TWm1Y372o
bzU=
-----END CERTIFICATE-----
""",
    b"""-----BEGIN PRIVATE KEY-----
MIIBeQIBADCCAQMGByqGSM49AgEwgfcCAQEwLAYHKoZIzj0BAQIhAP////8AAAAB
AAAAAAAAAAAAAAAA////////////////MFsEIP////8AAAABAAAAAAAAAAAAAAAA
///////////////8BCBaxjXYqjqT57PrvVV2mIa8ZR0GsMxTsPY7zjw+J9JgSwMV
AMSdNgiG5wSTamZ44ROdJreBn36QBEEEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg
9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9QIhAP////8A
AAAA//////////+85vqtpxeehPO5ysL8YyVRAgEBBG0wawIBAQQgkxCK/jwBB2eb
sjz6vIj5sDpOfa+xHiQR5RRogOYnEYmhRANCAASm+YmK59Xh38KC5oDI2Le3jkC0
iTNPMXgYFxHBiScEs1o/xRXegqmfhJfCkJ8BuEOGxiLc9yuueaoSCAiD/wg0
-----END PRIVATE KEY-----
""",
)

_TAG = 2  # bytes of tag and first byte of length, which says that two bytes of it follow


def with_version(certificate: bytes, version: int | None) -> bytes:
    """A certificate in PEM form that says of itself that it is of another version of X.509; None leaves that out.

    Its signature is no longer right, which nobody looks at who has it in a file.
    """
    der = base64.b64decode(b"".join(certificate.split(b"-----")[2].split()))
    said = b"\xa0\x03\x02\x01\x02"
    start = der.index(said)
    head, rest = bytearray(der[:start]), der[start + len(said) :]
    if version is not None:
        rest = said[:-1] + bytes([version]) + rest
    else:
        for place in (_TAG, start - 2):  # the certificate's length, and that of what is signed
            size = int.from_bytes(head[place : place + 2], "big") - len(said)
            head[place : place + 2] = size.to_bytes(2, "big")
    return pem(bytes(head) + rest)


def pem(der: bytes) -> bytes:
    """In PEM form."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
