//! A request to the token endpoint (distribution, "Token Authentication Specification").

use super::authenticate::Sender;
use crate::config::{Right, Rights};

/// Who asks for a token, and what for.
#[derive(Debug)]
pub struct TokenRequest {
    /// [`Sender::Known`] means nobody.
    pub sender: Sender,
    pub scopes: RequestedScopes,
}

/// The scopes of a request. The names in them are not kept, see `tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestedScopes {
    acts: Rights,
    /// How many there are.
    count: usize,
    /// How many are for pulls only.
    for_pulls: usize,
}

// === impl RequestedScopes ===

impl RequestedScopes {
    /// Reads the values of all `scope` parameters. Each may have several scopes with spaces between them. A text that is
    /// no scope is one that asks for nothing.
    pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut scopes = Self::default();
        for scope in values.flat_map(|value| value.split_ascii_whitespace()) {
            // The name may have colons, of the port of a host.
            let mut parts = scope.rsplitn(2, ':');
            let (actions, resource) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let acts = Self::acts_of(actions);
            let is_of_repository = resource.starts_with("repository:") || resource.starts_with("repository(");
            scopes.count += 1;
            scopes.for_pulls += usize::from(is_of_repository && actions == Right::Pull.as_str());
            scopes.acts = scopes.acts.iter().chain(acts.iter()).collect();
        }
        scopes
    }

    fn acts_of(actions: &str) -> Rights {
        match actions.split(',').any(|action| action == "*") {
            true => Rights::ALL,
            false => actions.split(',').filter_map(Right::parse).collect(),
        }
    }

    /// The actions of all scopes.
    pub(super) fn acts(self) -> Rights {
        self.acts
    }

    /// Whether there is a scope, and every one is for pulls only.
    pub(super) fn are_for_pulls(self) -> bool {
        self.count > 0 && self.count == self.for_pulls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_clients_send_them() {
        let pull = Rights::from(Right::Pull);
        let push: Rights = [Right::Pull, Right::Push].into_iter().collect();
        for (values, acts, for_pulls) in [
            (&[][..], Rights::NONE, false),
            (&[""], Rights::NONE, false),
            (&["repository:library/alpine:pull"], pull, true),
            (&["repository:localhost:5000/a:pull"], pull, true),
            (&["repository:a:pull", "repository:b:pull"], pull, true),
            (&["repository:a:pull repository:b:pull"], pull, true),
            (&["repository(plugin):a:pull"], pull, true),
            (&["repository:a:push,pull"], push, false),
            (&["repository:a:pull,push repository:b:pull"], push, false),
            (&["repository:a:pull", "repository:a:delete"], [Right::Pull, Right::Delete].into_iter().collect(), false),
            (&["repository:a:*"], Rights::ALL, false),
            (&["registry:catalog:*"], Rights::ALL, false),
            (&["registry:catalog:pull"], pull, false),
            (&["repository:a:"], Rights::NONE, false),
            (&["repository:a:frob"], Rights::NONE, false),
            (&["repository:a:pull", "x"], pull, false),
            (&["pull"], pull, false),
        ] {
            let scopes = RequestedScopes::parse(values.iter().copied());
            assert_eq!((scopes.acts(), scopes.are_for_pulls()), (acts, for_pulls), "{values:?}");
        }
    }
}
