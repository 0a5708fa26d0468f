//! The public keys of an issuer: a JWK set (RFC 7517), and verification of signatures with `ring`.
//!
//! What `jsonwebtoken` would do here is short enough, and it needs a backend: those that it has are not allowed by
//! `deny.toml`. A key is only ever used with the algorithms of its own type, so that no public key is taken for a shared
//! secret. There are no shared secrets.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::{Map, Value};

use super::json;
use crate::config::Algorithm;

/// Largest document with keys, in bytes.
pub(super) const MAX_KEYS_BYTES: usize = 64 << 10;

/// The keys of an issuer that can verify signatures.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    id: Option<String>,
    /// The one algorithm that the key is for, if it says so.
    algorithm: Option<Algorithm>,
    public: PublicKey,
}

#[derive(Debug, PartialEq, Eq)]
enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// The uncompressed points of curves.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

// === impl KeySet ===

impl KeySet {
    /// Keys of other types, for other uses and with mistakes are left out: an issuer may have them for others.
    ///
    /// # Errors
    /// The message for a text that is no set, or has no key that can be used.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set = json::object(text).ok_or("it is no JSON object, or has a key twice")?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list of \"keys\"")?;
        let keys: Vec<Key> = keys.iter().filter_map(|key| Key::parse(key.as_object()?)).collect();
        if keys.is_empty() {
            return Err("it has no key that can verify a signature; public RSA, EC and Ed25519 keys can".to_owned());
        }
        Ok(Self(keys))
    }

    /// The key of a token with this header. A token without the id of a key means the only one that fits.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let is_meant = |key: &&Key| (id.is_none() || key.id.as_deref() == id) && key.fits(algorithm);
        let mut fitting = self.0.iter().filter(is_meant);
        let key = fitting.next()?;
        fitting.next().is_none().then_some(key)
    }
}

// === impl Key ===

impl Key {
    fn parse(key: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let is_for_signatures = key.get("use").is_none_or(|purpose| purpose == "sig");
        let may_verify = key.get("key_ops").is_none_or(|operations| {
            operations.as_array().is_some_and(|operations| operations.iter().any(|operation| operation == "verify"))
        });
        if !is_for_signatures || !may_verify {
            return None;
        }
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == length && y.len() == length).then(|| [&[4], &x[..], &y[..]].concat())
        };
        let public = match (text("kty")?, text("crv")) {
            ("RSA", _) => PublicKey::Rsa { modulus: bytes("n")?, exponent: bytes("e")? },
            ("EC", Some("P-256")) => PublicKey::P256(point(32)?),
            ("EC", Some("P-384")) => PublicKey::P384(point(48)?),
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519(bytes("x")?),
            _ => return None,
        };
        // A key that is for an algorithm which is not known here cannot be used.
        let algorithm = match key.get("alg") {
            None => None,
            Some(algorithm) => Some(Algorithm::parse(algorithm.as_str()?)?),
        };
        let id = match key.get("kid") {
            None => None,
            Some(id) => Some(id.as_str()?.to_owned()),
        };
        Some(Self { id, algorithm, public })
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let is_of_type = match self.public {
            PublicKey::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            PublicKey::P256(_) => algorithm == Es256,
            PublicKey::P384(_) => algorithm == Es384,
            PublicKey::Ed25519(_) => algorithm == EdDsa,
        };
        is_of_type && self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// Whether the signature of the message is one of this key. RSA keys below 2048 bits verify nothing.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.public, parameters(algorithm)) {
            (PublicKey::Rsa { modulus, exponent }, Parameters::Rsa(parameters)) => {
                let key = RsaPublicKeyComponents { n: without_zeros(modulus), e: without_zeros(exponent) };
                key.verify(parameters, message, signature).is_ok()
            }
            (PublicKey::P256(key) | PublicKey::P384(key) | PublicKey::Ed25519(key), Parameters::Other(parameters))
                if self.fits(algorithm) =>
            {
                UnparsedPublicKey::new(parameters, key).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

enum Parameters {
    Rsa(&'static RsaParameters),
    Other(&'static dyn VerificationAlgorithm),
}

fn parameters(algorithm: Algorithm) -> Parameters {
    match algorithm {
        Algorithm::Rs256 => Parameters::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Parameters::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Parameters::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Parameters::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Parameters::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Parameters::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 => Parameters::Other(&signature::ECDSA_P256_SHA256_FIXED),
        Algorithm::Es384 => Parameters::Other(&signature::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDsa => Parameters::Other(&signature::ED25519),
    }
}

/// `ring` takes no leading zeros, and some issuers write one.
fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::access::oidc::test_keys::TestKey;

    fn set(keys: &[Value]) -> Result<KeySet, String> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn each_algorithm_verifies_with_keys_of_its_type() {
        let keys = [TestKey::rsa(), TestKey::p256(), TestKey::p384(), TestKey::ed25519()];
        let jwks: Vec<Value> = keys.iter().zip(["r", "p256", "p384", "ed"]).map(|(key, id)| key.jwk(id)).collect();
        let set = set(&jwks).unwrap();
        for algorithm in Algorithm::ALL {
            let place = match algorithm {
                Algorithm::Es256 => 1,
                Algorithm::Es384 => 2,
                Algorithm::EdDsa => 3,
                _ => 0,
            };
            let signature = keys[place].sign(algorithm.as_str(), b"message");
            for (at, key) in set.0.iter().enumerate() {
                assert_eq!(key.fits(algorithm), at == place, "{algorithm} {at}");
                assert_eq!(key.verifies(algorithm, b"message", &signature), at == place, "{algorithm} {at}");
                assert!(!key.verifies(algorithm, b"massage", &signature), "{algorithm}");
                assert!(!key.verifies(algorithm, b"message", &signature[1..]) && !key.verifies(algorithm, b"", &[]));
            }
            let others = Algorithm::ALL.into_iter().filter(|other| *other != algorithm);
            assert!(
                others.into_iter().all(|other| !set.0[place].verifies(other, b"message", &signature)),
                "{algorithm}"
            );
        }
    }

    #[test]
    fn the_key_is_that_of_the_id_and_of_the_algorithm() {
        let (rsa, p256) = (TestKey::rsa(), TestKey::p256());
        let mut pinned = rsa.jwk("pinned");
        pinned["alg"] = json!("RS512");
        let keys = set(&[rsa.jwk("a"), p256.jwk("b"), pinned]).unwrap();
        let found = |id: &str, algorithm| keys.find(Some(id), algorithm).is_some();
        assert!(found("a", Algorithm::Rs256) && found("a", Algorithm::Ps256) && found("b", Algorithm::Es256));
        assert!(!found("a", Algorithm::Es256) && !found("b", Algorithm::Rs256) && !found("c", Algorithm::Rs256));
        assert!(found("pinned", Algorithm::Rs512) && !found("pinned", Algorithm::Rs256));
        // A token without the id of a key.
        assert!(keys.find(None, Algorithm::Es256).is_some(), "only one can be meant");
        assert!(keys.find(None, Algorithm::Rs512).is_none(), "two could be meant");
    }

    #[test]
    fn keys_that_cannot_be_used_are_left_out() {
        let with = |key: &str, value: Value| {
            let mut jwk = TestKey::p256().jwk("x");
            jwk[key] = value;
            jwk
        };
        assert_eq!(set(&[with("use", json!("sig")), with("key_ops", json!(["verify"]))]).unwrap().0.len(), 2);
        for unusable in [
            with("use", json!("enc")),
            with("key_ops", json!(["sign"])),
            with("crv", json!("P-521")),
            with("x", json!("AA")),
            with("x", json!(5)),
            with("y", Value::Null),
            with("alg", json!("HS256")),
            with("kid", json!(7)),
            with("kty", json!("oct")),
            json!({ "kty": "oct", "kid": "x", "k": "c2VjcmV0" }),
            json!({ "kty": "RSA", "kid": "x", "n": "AQ" }),
            json!("x"),
        ] {
            assert!(set(std::slice::from_ref(&unusable)).unwrap_err().contains("no key that can verify"), "{unusable}");
            assert_eq!(set(&[unusable, TestKey::p256().jwk("good")]).unwrap().0.len(), 1);
        }
        for text in ["", "[]", "{}", "{\"keys\":1}", "{\"keys\":[],\"keys\":[]}", "<html>"] {
            assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_short_rsa_key_verifies_nothing() {
        let short = json!({ "kty": "RSA", "kid": "x", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" });
        let keys = set(&[short]).unwrap();
        assert!(!keys.find(Some("x"), Algorithm::Rs256).unwrap().verifies(Algorithm::Rs256, b"m", &[0; 128]));
    }
}
