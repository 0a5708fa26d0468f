//! Parser for `Retry-After` in all forms that registries send.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// Longest accepted time.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The time in the header: integer or fractional seconds, an HTTP date (RFC 9110, section 10.2.3), or a number with a
/// unit.
pub(super) fn from_headers(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(then) = httpdate::parse_http_date(value) {
        // The date is compared with the upstream's own clock if sent, as the clock here may be wrong.
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let now = date.unwrap_or_else(SystemTime::now);
        return Some(then.duration_since(now).unwrap_or_default().min(MAX_RETRY_AFTER));
    }
    duration(value)
}

/// The time in a body such as `retry-after: 1.16ms, allowed: 44000/minute`, which GHCR sends instead of the header.
pub(super) fn from_body(body: &[u8]) -> Option<Duration> {
    let body = String::from_utf8_lossy(body).to_ascii_lowercase();
    let (_, rest) = body.split_once("retry-after")?;
    duration(rest.trim_start_matches(['"', ':', '=', ' ']))
}

/// Parses a number with an optional unit at the beginning. The rest is ignored.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let rest = rest.trim_start();
    let unit = rest.find(|c: char| !c.is_alphabetic()).map_or(rest, |end| &rest[..end]);
    let seconds = match unit.to_lowercase().as_str() {
        "ns" => number / 1e9,
        "us" | "µs" | "μs" => number / 1e6,
        "ms" => number / 1e3,
        "m" | "min" | "minute" | "minutes" => number * 60.0,
        "h" | "hour" | "hours" => number * 3600.0,
        _ => number,
    };
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn header(value: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        headers.insert(DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        from_headers(&headers)
    }

    #[test]
    fn header_is_parsed_in_every_form() {
        let table = [
            ("120", Some(Duration::from_secs(120))),
            (" 120 ", Some(Duration::from_secs(120))),
            ("0.5", Some(Duration::from_millis(500))),
            ("1.16ms", Some(Duration::from_micros(1160))),
            ("3 s", Some(Duration::from_secs(3))),
            ("2m", Some(Duration::from_secs(120))),
            ("1h", Some(Duration::from_secs(3600))),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(Duration::from_secs(30))),
            ("Sun, 06 Nov 1994 08:40:00 GMT", Some(Duration::ZERO)),
            ("99999999999999999999999999", Some(MAX_RETRY_AFTER)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ];
        for (value, expected) in table {
            assert_eq!(header(value), expected, "{value:?}");
        }
    }

    #[test]
    fn body_is_parsed() {
        let table: [(&str, Option<Duration>); 4] = [
            ("retry-after: 1.16ms, allowed: 44000/minute", Some(Duration::from_micros(1160))),
            (r#"{"errors":[{"message":"Retry-After=7"}]}"#, Some(Duration::from_secs(7))),
            ("toomanyrequests: retry-after", None),
            ("slow down", None),
        ];
        for (body, expected) in table {
            assert_eq!(from_body(body.as_bytes()), expected, "{body:?}");
        }
    }
}
