//! Content digests (image-spec, descriptor.md, "Digests").

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};

/// Hexadecimal digits of a sha512 digest, the longest one.
const MAX_HEX_DIGITS: usize = 128;

/// A registered digest algorithm that the registry supports (image-spec, descriptor.md, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

/// A content digest, valid by construction. As text: `algorithm:hex`, lower case, exactly as long as the algorithm's
/// hash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

/// Why text is not accepted as a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("the digest is not of the form algorithm:hex")]
    Shape,
    #[error("the digest algorithm is not supported; use sha256 or sha512")]
    Algorithm,
    #[error("the digest's hex part has the wrong length or characters other than 0-9 and a-f")]
    Encoded,
}

/// An incremental hash of one of the supported algorithms.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

// === impl Algorithm ===

impl Algorithm {
    /// The algorithm's name in a digest: `sha256` or `sha512`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// A hasher of no bytes yet.
    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Sha512 => Hasher::Sha512(Box::default()),
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::Algorithm),
        }
    }
}

// === impl Digest ===

impl Digest {
    /// The algorithm of the digest.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 bytes for sha256, 64 bytes for sha512.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => &bytes[..],
        }
    }

    /// The hex part in lower case, without the algorithm.
    pub fn hex(&self) -> String {
        self.with_hex(str::to_owned)
    }

    /// The digest as an entity tag: its text in double quotes (RFC 9110, section 8.8.3).
    pub fn quoted(&self) -> Bytes {
        let quoted = self.with_hex(|hex| ["\"", self.algorithm().as_str(), ":", hex, "\""].concat());
        quoted.into()
    }

    /// Nearly every response contains a digest, so its hex digits are formatted on the stack.
    fn with_hex<T>(&self, use_hex: impl FnOnce(&str) -> T) -> T {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; MAX_HEX_DIGITS];
        let bytes = self.as_bytes();
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        use_hex(str::from_utf8(&digits[..bytes.len() * 2]).unwrap_or_default())
    }

    /// Makes a digest from a raw hash, the inverse of [`Digest::as_bytes`]. `None` if `bytes` has the wrong length.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => bytes.try_into().ok().map(Self::Sha256),
            Algorithm::Sha512 => bytes.try_into().ok().map(|b| Self::Sha512(Box::new(b))),
        }
    }

    /// Computes the digest of `bytes`. Large content should be hashed on the blocking pool.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Shape)?;
        match algorithm.parse()? {
            Algorithm::Sha256 => decode_hex::<32>(hex).map(Self::Sha256),
            Algorithm::Sha512 => decode_hex::<64>(hex).map(|bytes| Self::Sha512(Box::new(bytes))),
        }
    }
}

fn decode_hex<const N: usize>(hex: &str) -> Result<[u8; N], DigestError> {
    let hex = hex.as_bytes();
    if hex.len() != N * 2 {
        return Err(DigestError::Encoded);
    }
    let mut bytes = [0; N];
    // Invalid digits are looked for once, at the end: every hit by digest parses one.
    let mut bits = 0;
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|digit| HEX_VALUES[usize::from(digit)]);
        bits |= high | low;
        *byte = high << 4 | low;
    }
    if bits == INVALID_DIGIT { Err(DigestError::Encoded) } else { Ok(bytes) }
}

/// The value of each byte as a hexadecimal digit in lower case.
const HEX_VALUES: [u8; 256] = {
    let (digits, mut values, mut value) = (b"0123456789abcdef", [INVALID_DIGIT; 256], 0);
    while value < digits.len() {
        values[digits[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// The value of other bytes. It has bits that no digit has.
const INVALID_DIGIT: u8 = 0xff;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_hex(|hex| [self.algorithm().as_str(), ":", hex].into_iter().try_for_each(|part| f.write_str(part)))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Hasher ===

impl Hasher {
    /// Adds bytes to the hash.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes added so far.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(Box::new(hasher.finalize().into())),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// Whether text has the form of a digest of any algorithm (image-spec, descriptor.md, "Digests").
pub(super) fn is_digest_grammar(text: &str) -> bool {
    let Some((algorithm, encoded)) = text.split_once(':') else { return false };
    let is_algorithm = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+._-".contains(&b);
    let is_encoded = |b: u8| b.is_ascii_alphanumeric() || b"=_-".contains(&b);
    !algorithm.is_empty()
        && algorithm.bytes().all(is_algorithm)
        && !encoded.is_empty()
        && encoded.bytes().all(is_encoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn empty_content_has_the_known_digest() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(Algorithm::Sha256, b""));
    }

    #[test]
    fn invalid_digests_are_rejected() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for (text, error) in [
            ("", DigestError::Shape),
            ("sha256", DigestError::Shape),
            ("md5:00", DigestError::Algorithm),
            ("sha256:", DigestError::Encoded),
            ("sha256:baddigeststring", DigestError::Encoded),
            (&EMPTY[..EMPTY.len() - 1], DigestError::Encoded),
            (upper.as_str(), DigestError::Encoded),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printed_digest_parses_back(bytes in prop::array::uniform32(any::<u8>()), long in any::<bool>()) {
            let digest = if long { Digest::of(Algorithm::Sha512, &bytes) } else { Digest::Sha256(bytes) };
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest.clone());
            prop_assert_eq!(Digest::from_bytes(digest.algorithm(), digest.as_bytes()), Some(digest));
        }

        #[test]
        fn no_input_panics(text in ".{0,200}") {
            let _ = text.parse::<Digest>();
        }
    }
}
