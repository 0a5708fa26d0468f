//! Bounds the passwords that a client can try.
//!
//! What is counted are *different* wrong passwords, by the client's address and by address and user. A user alone is
//! never blocked, because anybody could block a user then. Behind an address with many people, users who have logged in
//! from there before are exempt from the bound of the address, and keep only the one of their own name.
//!
//! An attempt counts from its beginning, and is taken back when the password was right, so that many attempts at the
//! same time are bounded too.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;

/// Different wrong passwords within [`WINDOW`] that are free.
const MAX_WRONG_PASSWORDS: usize = 10;
const WINDOW: Duration = Duration::from_secs(5 * 60);
/// The first pause. Each further one is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// After this time without a pause, all passwords are free again, and the next pause is a first one.
const FORGET_PAUSES_AFTER: Duration = Duration::from_secs(15 * 60);
/// How long a login exempts from the bound of the address.
pub(super) const EXEMPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Entries of each table. The longest unused one is dropped.
const MAX_ENTRIES: u64 = 10_000;

/// The clients that try passwords.
#[derive(Debug)]
pub(super) struct Throttle {
    clients: Cache<Client, Arc<Mutex<Tries>>>,
    /// For exempt users alone, as the others are bounded by the address.
    pairs: Cache<(Client, UserId), Arc<Mutex<Tries>>>,
    /// Users who have logged in from an address.
    exempt: Cache<(Client, UserId), ()>,
}

/// A client as far as it can choose its address: an IPv4 address, or the network of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    V4([u8; 4]),
    V6([u8; 8]),
    /// The peer was gone before its address was asked for.
    Unknown,
}

/// Stands for the name of a user, so that entries have a bounded size.
pub(super) type UserId = u64;
/// Stands for a user with a password.
pub(super) type PasswordId = u64;

/// The wrong passwords of one client.
#[derive(Debug, Default)]
struct Tries {
    /// Each with the time of its first try, the oldest first. At most [`MAX_WRONG_PASSWORDS`].
    wrong: Vec<(PasswordId, Instant)>,
    pause: Option<Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
    /// Whether a password has been tried since. Only one is free.
    tried: bool,
}

/// A password that is being verified. It counts as wrong until it is taken back.
pub(super) struct Attempt<'a> {
    throttle: &'a Throttle,
    /// Where it counts.
    tries: Arc<Mutex<Tries>>,
    client: Client,
    user: UserId,
    password: PasswordId,
}

// === impl Throttle ===

impl Throttle {
    pub(super) fn new() -> Self {
        Self { clients: table(WINDOW * 8), pairs: table(WINDOW * 8), exempt: table(EXEMPT_FOR) }
    }

    /// Admits an attempt.
    ///
    /// # Errors
    /// The time after which the client may try again.
    pub(super) fn admit(
        &self,
        client: Client,
        user: UserId,
        password: PasswordId,
        now: Instant,
    ) -> Result<Attempt<'_>, Duration> {
        let tries = match self.exempt.contains_key(&(client, user)) {
            true => self.pairs.get_with((client, user), Arc::default),
            false => self.clients.get_with(client, Arc::default),
        };
        tries.lock().admit(password, now)?;
        Ok(Attempt { throttle: self, tries, client, user, password })
    }

    /// The time that a client has to wait; `None` if it may log in as this user without an attempt. A right password is no
    /// exception, or a client could find out which one is right.
    pub(super) fn pause(&self, client: Client, user: UserId, now: Instant) -> Option<Duration> {
        if self.exempt.contains_key(&(client, user)) {
            return None;
        }
        let pause = self.clients.get(&client)?.lock().pause?;
        Some(pause.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Notes a right password that needed no attempt.
    pub(super) fn note_login(&self, client: Client, user: UserId) {
        if !self.exempt.contains_key(&(client, user)) {
            self.exempt.insert((client, user), ());
        }
    }
}

fn table<K, V>(idle: Duration) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(MAX_ENTRIES).eviction_policy(EvictionPolicy::lru()).time_to_idle(idle).build()
}

// === impl Client ===

impl From<Option<IpAddr>> for Client {
    fn from(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => Self::V4(address.octets()),
            Some(IpAddr::V6(address)) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
            None => Self::Unknown,
        }
    }
}

// === impl Tries ===

impl Tries {
    fn admit(&mut self, password: PasswordId, now: Instant) -> Result<(), Duration> {
        if let Some(pause) = self.pause {
            let left = pause.until.saturating_duration_since(now);
            if !left.is_zero() {
                return Err(left);
            }
            if now.saturating_duration_since(pause.until) > FORGET_PAUSES_AFTER {
                self.pause = None;
            }
        }
        self.wrong.retain(|(_, tried)| now.saturating_duration_since(*tried) < WINDOW);
        if self.wrong.iter().any(|(known, _)| *known == password) {
            return Ok(());
        }
        let is_free = match &mut self.pause {
            Some(pause) => !std::mem::replace(&mut pause.tried, true),
            None => self.wrong.len() < MAX_WRONG_PASSWORDS,
        };
        if !is_free {
            let length = self.pause.map_or(FIRST_PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
            self.pause = Some(Pause { until: now + length, length, tried: false });
            return Err(length);
        }
        if self.wrong.len() >= MAX_WRONG_PASSWORDS {
            self.wrong.remove(0);
        }
        self.wrong.push((password, now));
        Ok(())
    }

    fn take_back(&mut self, password: PasswordId) {
        let before = self.wrong.len();
        self.wrong.retain(|(known, _)| *known != password);
        if let Some(pause) = self.pause.as_mut().filter(|_| self.wrong.len() < before) {
            pause.tried = false;
        }
    }
}

// === impl Attempt ===

impl Attempt<'_> {
    /// The password was right.
    pub(super) fn succeed(self) {
        self.take_back();
        self.throttle.note_login(self.client, self.user);
    }

    /// The password was not verified.
    pub(super) fn take_back(&self) {
        self.tries.lock().take_back(self.password);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client = Client::V4([10, 0, 0, 1]);
    const OTHER: Client = Client::V4([10, 0, 0, 2]);

    fn wrong(
        throttle: &Throttle,
        client: Client,
        user: UserId,
        password: PasswordId,
        now: Instant,
    ) -> Result<(), Duration> {
        throttle.admit(client, user, password, now).map(drop)
    }

    #[test]
    fn ten_different_wrong_passwords_are_free() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        for round in 0..3 {
            for password in 0..10 {
                assert_eq!(wrong(&throttle, CLIENT, password % 3, password, now), Ok(()), "{round}");
            }
        }
        assert_eq!(wrong(&throttle, CLIENT, 1, 10, now), Err(FIRST_PAUSE));
        assert_eq!(wrong(&throttle, OTHER, 1, 10, now), Ok(()), "another client is not affected");
        let later = now + FIRST_PAUSE / 2;
        assert_eq!(wrong(&throttle, CLIENT, 9, 0, later), Err(FIRST_PAUSE / 2), "also for other users");
    }

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let (throttle, mut now) = (Throttle::new(), Instant::now());
        for password in 0..10 {
            wrong(&throttle, CLIENT, 1, password, now).unwrap();
        }
        let mut pauses = Vec::new();
        let mut admitted = 0;
        for password in 10..30 {
            match wrong(&throttle, CLIENT, 1, password, now) {
                Ok(()) => admitted += 1,
                Err(pause) => {
                    pauses.push(pause.as_secs());
                    now += pause;
                }
            }
        }
        assert_eq!(pauses[..7], [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(admitted, 20 - pauses.len(), "one after each pause");
        now += FORGET_PAUSES_AFTER + WINDOW;
        for password in 100..110 {
            assert_eq!(wrong(&throttle, CLIENT, 1, password, now), Ok(()));
        }
        assert_eq!(wrong(&throttle, CLIENT, 1, 110, now), Err(FIRST_PAUSE));
    }

    #[test]
    fn a_right_password_does_not_count() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        for password in 0..100 {
            throttle.admit(CLIENT, 1, password, now).unwrap().succeed();
        }
        for password in 0..100 {
            throttle.admit(CLIENT, 1, password, now).unwrap().take_back();
        }
        assert_eq!(wrong(&throttle, CLIENT, 1, 0, now), Ok(()));
    }

    #[test]
    fn who_has_logged_in_is_blocked_by_own_mistakes_only() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        throttle.admit(CLIENT, 1, 1000, now).unwrap().succeed();
        for password in 0..10 {
            wrong(&throttle, CLIENT, 2, password, now).unwrap();
        }
        assert!(wrong(&throttle, CLIENT, 2, 10, now).is_err());
        assert!(wrong(&throttle, CLIENT, 3, 10, now).is_err());
        for password in 20..30 {
            assert_eq!(wrong(&throttle, CLIENT, 1, password, now), Ok(()));
        }
        assert_eq!(wrong(&throttle, CLIENT, 1, 30, now), Err(FIRST_PAUSE));
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let client = |text: &str| Client::from(Some(text.parse().unwrap()));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), CLIENT);
        assert_eq!(Client::from(None), Client::Unknown);
    }
}
