//! Hashes of passwords: bcrypt and argon2id, as text in the file of users.

use std::str::FromStr;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq;

/// The costs of bcrypt that are accepted. A cost above takes seconds for each login.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=14;
/// The cost of bcrypt that new hashes have.
pub(super) const DEFAULT_BCRYPT_COST: u32 = 10;
/// Bytes of a password that bcrypt hashes. It would ignore the rest.
pub(super) const MAX_BCRYPT_PASSWORD_BYTES: usize = 72;
/// Longest password in bytes that argon2id hashes here.
const MAX_ARGON2_PASSWORD_BYTES: usize = 1 << 10;
/// Most memory of argon2id, in KiB.
const MAX_ARGON2_KIB: u32 = 64 << 10;
/// Most work of argon2id: memory in KiB times passes. As much takes about half a second.
const MAX_ARGON2_WORK: u32 = 4 * MAX_ARGON2_KIB;
const MAX_ARGON2_LANES: u32 = 16;
const ARGON2_SALT_BYTES: std::ops::RangeInclusive<usize> = 8..=64;
const ARGON2_HASH_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
const ARGON2: &str = "$argon2id$";

/// What verifying a password costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Cost {
    Bcrypt(u32),
    Argon2 { kib: u32, passes: u32, lanes: u32 },
}

/// A hash of argon2id, taken apart.
struct Argon2Hash {
    params: Params,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

// === impl Cost ===

impl Cost {
    /// The cost of a hash.
    ///
    /// # Errors
    /// What the text is, if it is not accepted. It is not repeated.
    pub(super) fn of(hash: &str) -> Result<Self, String> {
        if is_argon2(hash) {
            let Argon2Hash { params, .. } = Argon2Hash::parse(hash)?;
            return Ok(Self::Argon2 { kib: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() });
        }
        let is_bcrypt = ["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind));
        let parts = bcrypt::HashParts::from_str(hash).ok().filter(|_| is_bcrypt);
        let kind = match hash {
            _ if let Some(parts) = &parts => return Self::of_bcrypt(parts.get_cost()),
            _ if is_bcrypt => "is a bcrypt hash that is damaged",
            _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => "is an MD5 hash, which is not safe",
            _ if hash.starts_with("{SHA}") => "is a SHA-1 hash, which is not safe",
            _ if hash.starts_with('$') => "is a hash of another kind than bcrypt or argon2id",
            _ => "is not a bcrypt hash",
        };
        Err(kind.to_owned())
    }

    fn of_bcrypt(cost: u32) -> Result<Self, String> {
        let (least, most) = (BCRYPT_COSTS.start(), BCRYPT_COSTS.end());
        match BCRYPT_COSTS.contains(&cost) {
            true => Ok(Self::Bcrypt(cost)),
            false => Err(format!("is a hash that has cost {cost}, not {least} to {most}")),
        }
    }

    /// A hash of this cost that no password has: its bytes are zero.
    pub(super) fn without_password(self) -> String {
        match self {
            Self::Bcrypt(cost) => format!("$2b${cost:02}${}", ".".repeat(53)),
            Self::Argon2 { kib, passes, lanes } => {
                let (salt, hash) = (STANDARD_NO_PAD.encode([0; 16]), STANDARD_NO_PAD.encode([0; 32]));
                format!("{ARGON2}v=19$m={kib},t={passes},p={lanes}${salt}${hash}")
            }
        }
    }
}

/// Whether a hash is of argon2id, which takes memory.
pub(super) fn is_argon2(hash: &str) -> bool {
    hash.starts_with(ARGON2)
}

/// Longest password in bytes that can have this hash.
pub(super) fn max_password_bytes(hash: &str) -> usize {
    if is_argon2(hash) { MAX_ARGON2_PASSWORD_BYTES } else { MAX_BCRYPT_PASSWORD_BYTES }
}

/// Whether a password has this hash. Takes a core for tens of milliseconds.
pub(super) fn verify(password: &str, hash: &str) -> bool {
    if !is_argon2(hash) {
        return bcrypt::verify(password, hash).unwrap_or(false);
    }
    let Ok(Argon2Hash { params, salt, hash }) = Argon2Hash::parse(hash) else { return false };
    let mut found = vec![0; hash.len()];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password.as_bytes(), &salt, &mut found).is_ok() && found.ct_eq(&hash).into()
}

// === impl Argon2Hash ===

impl Argon2Hash {
    /// Reads `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &str) -> Result<Self, String> {
        let damaged = || "is an argon2id hash that is damaged, or not of version 19".to_owned();
        let rest = text.strip_prefix(ARGON2).and_then(|rest| rest.strip_prefix("v=19$")).ok_or_else(damaged)?;
        let parts: Vec<&str> = rest.split('$').collect();
        let [params, salt, hash] = parts[..] else { return Err(damaged()) };
        let numbers: Vec<&str> = params.split(',').collect();
        let [kib, passes, lanes] = numbers[..] else { return Err(damaged()) };
        let number = |text: &str, name: &str| {
            let digits = text.strip_prefix(name).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
            digits.and_then(|digits| digits.parse::<u32>().ok()).ok_or_else(damaged)
        };
        let (kib, passes, lanes) = (number(kib, "m=")?, number(passes, "t=")?, number(lanes, "p=")?);
        let decoded = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
            let bytes = STANDARD_NO_PAD.decode(text).ok();
            bytes.filter(|bytes| lengths.contains(&bytes.len())).ok_or_else(damaged)
        };
        let (salt, hash) = (decoded(salt, ARGON2_SALT_BYTES)?, decoded(hash, ARGON2_HASH_BYTES)?);
        if kib > MAX_ARGON2_KIB || kib.saturating_mul(passes) > MAX_ARGON2_WORK || lanes > MAX_ARGON2_LANES {
            return Err(format!(
                "is an argon2id hash that takes too long: m may be {MAX_ARGON2_KIB}, m times t {MAX_ARGON2_WORK}, and p \
                 {MAX_ARGON2_LANES}"
            ));
        }
        let params = Params::new(kib, passes, lanes, Some(hash.len())).map_err(|_| damaged())?;
        Ok(Self { params, salt, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's hash of "password" with the salt "somesalt" (its test.c, version 0x13, m = 2^8).
    const REFERENCE: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

    #[test]
    fn hashes_of_the_reference_implementation_are_verified() {
        assert_eq!(Cost::of(REFERENCE), Ok(Cost::Argon2 { kib: 256, passes: 2, lanes: 1 }));
        assert!(verify("password", REFERENCE) && !verify("Password", REFERENCE) && !verify("", REFERENCE));
        let lanes = "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc";
        assert!(verify("password", lanes));
    }

    #[test]
    fn hashes_that_cost_too_much_or_are_damaged_are_refused() {
        for (from, to, reason) in [
            ("v=19", "v=16", "not of version 19"),
            ("v=19$", "", "damaged"),
            ("m=256", "m=65537", "takes too long"),
            ("m=256,t=2", "m=65536,t=5", "takes too long"),
            ("m=256,t=2", "m=256,t=4294967295", "takes too long"),
            ("p=1", "p=17", "takes too long"),
            ("p=1", "p=0", "damaged"),
            ("t=2", "t=0", "damaged"),
            ("m=256", "m=1", "damaged"),
            ("m=256", "m=+256", "damaged"),
            ("m=256", "m=99999999999", "damaged"),
            ("m=256,t=2", "t=2,m=256", "damaged"),
            ("c29tZXNhbHQ", "c29t", "damaged"),
            ("c29tZXNhbHQ", "c29tZXNhbHQ=", "damaged"),
            ("nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4", "nf65", "damaged"),
            ("/4", "/4$x", "damaged"),
        ] {
            let text = REFERENCE.replace(from, to);
            let error = Cost::of(&text).unwrap_err();
            assert!(error.contains(reason) && !verify("password", &text), "{text}: {error}");
        }
    }

    #[test]
    fn a_hash_without_a_password_costs_the_same() {
        for cost in [Cost::Bcrypt(5), Cost::Argon2 { kib: 64, passes: 2, lanes: 1 }] {
            let hash = cost.without_password();
            assert_eq!(Cost::of(&hash), Ok(cost));
            assert!(!verify("", &hash) && !verify("secret", &hash));
        }
    }
}
