//! Reads `Link: <…>; rel="next"` of upstreams' lists (RFC 8288), relative or absolute. Callers use only the end of the path
//! and the query, and never the host.

use http::HeaderMap;
use http::header::LINK;

/// Returns the target of the link to the next page.
pub(super) fn next_link(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(LINK).iter().find_map(|link| next_of(link.to_str().ok()?))
}

fn next_of(link: &str) -> Option<&str> {
    let target = link.split_once('<')?.1.split_once('>')?.0;
    (link.contains("rel=\"next\"") || link.contains("rel=next")).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_to_the_next_page_counts() {
        for (link, target) in [
            ("</v2/a?last=x>; rel=\"next\"", Some("/v2/a?last=x")),
            ("<https://other.example/v2/a?last=x>; rel=next", Some("https://other.example/v2/a?last=x")),
            ("</v2/a>; rel=\"prev\"", None),
            ("<x>", None),
            ("", None),
        ] {
            assert_eq!(next_of(link), target, "{link}");
        }
    }
}
