//! Who may do what: the one gate that every request passes before it acts.
//!
//! The order is parse, authenticate, resolve, authorize, act. `http` makes a [`Caller`] of each request. The [`Gate`]
//! authenticates it, finds out which repository is meant, and makes an [`Authorized`] value. A handler gets the repository
//! from that value alone, and only the gate can make one, so no handler can act without it.
//!
//! A request is turned away for different reasons, and they stay different: it is *unauthenticated* (401), *denied* (403),
//! the operation is *switched off* (405), or the name is not one that it may be used with (403, 404).

mod authenticate;
mod caller;
mod gate;

pub use authenticate::{Principal, Unauthenticated};
pub use caller::{Caller, Peer, VerifiedCertificate};
pub use gate::{AccessError, Action, Authorized, Catalog, Delete, Gate, Pull, Push, SwitchedOff};
