//! Three eviction policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use roadstead::oci::Digest;
use roadstead::store::EvictionOrder;

use crate::month::Month;

pub trait Policy {
    /// Returns whether the object is cached, and caches it if it fits.
    fn request(&mut self, position: usize, object: u32, size: u64, at: u32) -> bool;
}

/// Plain least recently used.
pub struct Lru {
    capacity: u64,
    used: u64,
    here: HashMap<u32, (usize, u64)>,
    order: BTreeMap<usize, u32>,
}

impl Lru {
    pub fn new(capacity: u64) -> Self {
        Self { capacity, used: 0, here: HashMap::new(), order: BTreeMap::new() }
    }
}

impl Policy for Lru {
    fn request(&mut self, position: usize, object: u32, size: u64, _at: u32) -> bool {
        if size > self.capacity {
            return false;
        }
        let before = self.here.insert(object, (position, size));
        self.order.insert(position, object);
        match before {
            Some((before, _)) => {
                self.order.remove(&before);
            }
            None => self.used += size,
        }
        while self.used > self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.used -= self.here.remove(&oldest).map_or(0, |(_, size)| size);
        }
        before.is_some()
    }
}

/// The policy of the store.
pub struct Ours {
    capacity: u64,
    order: EvictionOrder,
    here: HashMap<Digest, u64>,
}

impl Ours {
    pub fn new(capacity: u64) -> Self {
        Self { capacity, order: EvictionOrder::new(capacity), here: HashMap::new() }
    }
}

impl Policy for Ours {
    fn request(&mut self, _position: usize, object: u32, size: u64, at: u32) -> bool {
        let digest = digest_of(object);
        if self.here.contains_key(&digest) {
            self.order.touch(&digest, at);
            return true;
        }
        if size > self.capacity {
            return false;
        }
        let over = (self.order.bytes() + size).saturating_sub(self.capacity);
        for victim in self.order.victims(over, usize::MAX, at) {
            self.order.remove(&victim);
            self.here.remove(&victim);
        }
        self.order.insert(&digest, size, at);
        self.here.insert(digest, size);
        false
    }
}

fn digest_of(object: u32) -> Digest {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&object.to_be_bytes());
    Digest::Sha256(bytes)
}

/// Evicts the object whose next request is latest (Belady). With objects of different sizes this is not quite the optimum,
/// but the closest policy that can be computed for a month.
pub struct Foresight {
    capacity: u64,
    used: u64,
    /// For each request, the next one for the same object.
    next: Vec<usize>,
    here: HashMap<u32, (usize, u64)>,
    order: BTreeSet<(usize, u32)>,
}

impl Foresight {
    pub fn new(capacity: u64, month: &Month) -> Self {
        let mut coming = HashMap::new();
        let mut next = vec![usize::MAX; month.requests.len()];
        for (position, request) in month.requests.iter().enumerate().rev() {
            next[position] = coming.insert(request.object, position).unwrap_or(usize::MAX);
        }
        Self { capacity, used: 0, next, here: HashMap::new(), order: BTreeSet::new() }
    }
}

impl Policy for Foresight {
    fn request(&mut self, position: usize, object: u32, size: u64, _at: u32) -> bool {
        if size > self.capacity {
            return false;
        }
        let next = self.next[position];
        let before = self.here.insert(object, (next, size));
        match before {
            Some((before, _)) => {
                self.order.remove(&(before, object));
            }
            None => self.used += size,
        }
        self.order.insert((next, object));
        while self.used > self.capacity
            && let Some((_, last)) = self.order.pop_last()
        {
            self.used -= self.here.remove(&last).map_or(0, |(_, size)| size);
        }
        before.is_some()
    }
}
