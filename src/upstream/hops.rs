//! The servers that a client's request passed through before this one, forwarded in `Via` (RFC 9110, section 7.6.3).

use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue, VIA};

/// Longest forwarded `Via` in bytes. If there is more, the latest hops are kept: in a loop, a server that is passed
/// twice is among them.
const MAX_VIA_BYTES: usize = 1024;

/// The hops of one request as written in `Via`, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hops(Option<Arc<str>>);

impl Hops {
    /// Reads the hops from the headers of a request.
    pub fn of(headers: &HeaderMap) -> Self {
        let fields: Vec<&str> = headers.get_all(VIA).iter().filter_map(|field| field.to_str().ok()).collect();
        let all = fields.join(", ");
        let mut kept = all.as_str();
        while kept.len() > MAX_VIA_BYTES {
            kept = kept.split_once(',').map_or("", |(_, later)| later);
        }
        let kept = kept.trim();
        Self((!kept.is_empty()).then(|| kept.into()))
    }

    /// Whether the client's request was direct.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether one of the hops is the server `name`. If that is this server, its upstreams lead back to it.
    pub fn contains(&self, name: &str) -> bool {
        let hops = self.0.iter().flat_map(|hops| hops.split(','));
        hops.map(|hop| hop.split_whitespace().nth(1)).any(|by| by == Some(name))
    }

    /// The `Via` header with `own` appended to these hops.
    pub(super) fn followed_by(&self, own: &HeaderValue) -> HeaderValue {
        let longer =
            self.0.as_ref().and_then(|hops| HeaderValue::try_from(format!("{hops}, {}", own.to_str().ok()?)).ok());
        longer.unwrap_or_else(|| own.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops(fields: &[&str]) -> Hops {
        let fields = fields.iter().map(|field| (VIA, HeaderValue::from_str(field).unwrap()));
        Hops::of(&fields.collect::<HeaderMap>())
    }

    #[test]
    fn own_hop_is_appended() {
        let own = HeaderValue::from_static("1.1 roadstead-me");
        for (fields, carried) in [
            (&[][..], "1.1 roadstead-me"),
            (&[""], "1.1 roadstead-me"),
            (&["1.1 a"], "1.1 a, 1.1 roadstead-me"),
            (&["1.1 a, 2 b (proxy)", "1.0 c"], "1.1 a, 2 b (proxy), 1.0 c, 1.1 roadstead-me"),
        ] {
            assert_eq!(hops(fields).followed_by(&own), carried, "{fields:?}");
        }
    }

    #[test]
    fn servers_are_found_by_complete_name() {
        let hops = hops(&["1.1 one,1.1 two (x)", "HTTP/1.1 three"]);
        for (name, found) in [("one", true), ("two", true), ("three", true), ("tw", false), ("x", false)] {
            assert_eq!(hops.contains(name), found, "{name}");
        }
    }

    #[test]
    fn oldest_hops_are_dropped_above_the_limit() {
        let many: String = (0..400).map(|n| format!("1.1 hop-{n}, ")).collect();
        let hops = hops(&[&many, "1.1 last"]);
        assert!(hops.contains("last") && hops.contains("hop-399") && !hops.contains("hop-0"));
        assert!(hops.0.as_ref().unwrap().len() <= MAX_VIA_BYTES);
        assert_eq!(self::hops(&[&"x".repeat(5000)]), Hops::default());
    }
}
