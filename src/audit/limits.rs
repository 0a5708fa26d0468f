//! Bounds the records that clients can cause at will: a few a minute for each client and subject, and a number for all.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::record::Event;

/// After this time, everything is counted from zero.
const WINDOW: Duration = Duration::from_secs(60);
/// Records of one event about one subject from one client, in a window.
const MAX_OF_CLIENT: u32 = 10;
/// Records of one event from all clients, in a window: about 60 KiB.
const MAX_OF_ALL: u32 = 120;
/// As [`MAX_OF_ALL`], for logins that succeed. Their number is bounded by the users.
const MAX_LOGINS: u32 = 600;

#[derive(Default)]
pub(super) struct Limits(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// When the window began.
    began: Option<Instant>,
    /// By a hash of event, client and subject. Only admitted records add an entry, so it is as large as their number.
    of_clients: HashMap<u64, u32>,
    of_all: HashMap<Event, u32>,
    left_out: HashMap<Event, u64>,
}

// === impl Limits ===

impl Limits {
    /// Whether a record may be written. Otherwise it is counted as left out.
    pub(super) fn admits(&self, event: Event, client: Option<IpAddr>, about: &str, now: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        (event, client.map(network), about).hash(&mut hasher);
        let key = hasher.finish();
        let mut counts = self.0.lock();
        if counts.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            counts.began = Some(now);
            counts.of_clients.clear();
            counts.of_all.clear();
        }
        let max_of_all = if event == Event::Login { MAX_LOGINS } else { MAX_OF_ALL };
        let of_all = counts.of_all.get(&event).copied().unwrap_or(0);
        let of_client = counts.of_clients.get(&key).copied().unwrap_or(0);
        let is_admitted = of_all < max_of_all && of_client < MAX_OF_CLIENT;
        if is_admitted {
            counts.of_all.insert(event, of_all + 1);
            counts.of_clients.insert(key, of_client + 1);
        } else {
            *counts.left_out.entry(event).or_default() += 1;
        }
        is_admitted
    }

    /// How many records were left out since the last call.
    pub(super) fn take_left_out(&self) -> Vec<(Event, u64)> {
        self.0.lock().left_out.drain().collect()
    }
}

/// A client as far as it can choose its address: the network of an IPv6 address.
fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => (u128::from(address) >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_for_each_client_and_for_all() {
        let (limits, now) = (Limits::default(), Instant::now());
        let client =
            |last: u32| Some(IpAddr::from((u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0)) + last).to_be_bytes()));
        let admitted = (0..10_000).filter(|_| limits.admits(Event::Denied, client(1), "ann", now)).count();
        assert_eq!(admitted, MAX_OF_CLIENT as usize);
        assert!(
            limits.admits(Event::Denied, client(1), "bob", now)
                && limits.admits(Event::LoginFailed, client(1), "ann", now)
        );
        let admitted = (0..10_000).filter(|last| limits.admits(Event::Denied, client(last + 2), "ann", now)).count();
        assert_eq!(admitted, MAX_OF_ALL as usize - MAX_OF_CLIENT as usize - 1);
        assert!(limits.0.lock().of_clients.len() <= MAX_OF_ALL as usize + 1);
        assert!(limits.admits(Event::LoginFailed, client(1), "ann", now), "one event leaves others alone");
        assert_eq!(limits.take_left_out(), [(Event::Denied, 20_000 - u64::from(MAX_OF_ALL) + 1)]);
        assert_eq!(limits.take_left_out(), []);
        assert!(limits.admits(Event::Denied, client(1), "ann", now + WINDOW));
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let (limits, now) = (Limits::default(), Instant::now());
        let addresses = (0..100u128).map(|last| Some(IpAddr::from((0x2001_0db8_u128 << 96 | last).to_be_bytes())));
        let admitted = addresses.filter(|address| limits.admits(Event::Login, *address, "ann", now)).count();
        assert_eq!(admitted, MAX_OF_CLIENT as usize);
    }
}
