//! What a client's request has come through before us, to be passed on in `Via` (RFC 9110, 7.6.3).

use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue, VIA};

/// Bytes of `Via` that are carried on. Where there is more, the latest hops are: a server that is passed twice within a
/// loop is among them, and whoever sends more than this wants to hide something.
const MOST: usize = 1024;

/// The hops of one request, as they stand in `Via`, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hops(Option<Arc<str>>);

impl Hops {
    /// From the headers of a request.
    pub fn of(headers: &HeaderMap) -> Self {
        let fields: Vec<&str> = headers.get_all(VIA).iter().filter_map(|field| field.to_str().ok()).collect();
        let all = fields.join(", ");
        let mut kept = all.as_str();
        while kept.len() > MOST {
            kept = kept.split_once(',').map_or("", |(_, later)| later);
        }
        let kept = kept.trim();
        Self((!kept.is_empty()).then(|| kept.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a hop names this server: then the request has been here before.
    pub fn contain(&self, name: &str) -> bool {
        let hops = self.0.iter().flat_map(|hops| hops.split(','));
        hops.map(|hop| hop.split_whitespace().nth(1)).any(|by| by == Some(name))
    }

    /// These hops, and ours behind them.
    pub(super) fn then(&self, own: &HeaderValue) -> HeaderValue {
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
    fn hops_are_carried_in_order_with_ours_at_the_end() {
        let own = HeaderValue::from_static("1.1 roadstead-me");
        for (fields, carried) in [
            (&[][..], "1.1 roadstead-me"),
            (&[""], "1.1 roadstead-me"),
            (&["1.1 a"], "1.1 a, 1.1 roadstead-me"),
            (&["1.1 a, 2 b (proxy)", "1.0 c"], "1.1 a, 2 b (proxy), 1.0 c, 1.1 roadstead-me"),
        ] {
            assert_eq!(hops(fields).then(&own), carried, "{fields:?}");
        }
    }

    #[test]
    fn a_server_finds_itself_by_its_whole_name_only() {
        let hops = hops(&["1.1 one,1.1 two (x)", "HTTP/1.1 three"]);
        for (name, found) in [("one", true), ("two", true), ("three", true), ("tw", false), ("x", false)] {
            assert_eq!(hops.contain(name), found, "{name}");
        }
    }

    #[test]
    fn of_too_many_hops_the_latest_are_carried() {
        let many: String = (0..400).map(|n| format!("1.1 hop-{n}, ")).collect();
        let hops = hops(&[&many, "1.1 last"]);
        assert!(hops.contain("last") && hops.contain("hop-399") && !hops.contain("hop-0"));
        assert!(hops.0.as_ref().unwrap().len() <= MOST);
        assert_eq!(self::hops(&[&"x".repeat(5000)]), Hops::default());
    }
}
