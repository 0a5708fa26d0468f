//! The rules in force, which a reload replaces.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

use super::policy::Policy;

/// The rules in force. Clones share them.
#[derive(Clone, Debug)]
pub struct Rules(Arc<RwLock<Arc<Policy>>>);

impl Rules {
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(policy))))
    }

    /// For one decision. A reload waits for it.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Arc<Policy>> {
        self.0.read()
    }

    /// For a decision that takes long.
    pub fn get(&self) -> Arc<Policy> {
        self.0.read().clone()
    }

    /// Puts other rules in force, for requests that have not been decided.
    pub fn replace(&self, policy: Policy) {
        *self.0.write() = Arc::new(policy);
    }
}
