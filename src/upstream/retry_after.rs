//! `Retry-After` in all the forms that registries send.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// No upstream keeps us away for longer than this by one answer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How long to stay away: whole or fractional seconds, an HTTP date (RFC 9110, 10.2.3), or a number with a unit.
pub(super) fn from_headers(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(then) = httpdate::parse_http_date(value) {
        // The upstream's own clock, where it shows it: ours may be wrong.
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let now = date.unwrap_or_else(SystemTime::now);
        return Some(then.duration_since(now).unwrap_or_default().min(LONGEST));
    }
    duration(value)
}

/// The same from a body such as `retry-after: 1.16ms, allowed: 44000/minute` (GHCR sends it without the header).
pub(super) fn from_body(body: &[u8]) -> Option<Duration> {
    let body = String::from_utf8_lossy(body).to_ascii_lowercase();
    let (_, rest) = body.split_once("retry-after")?;
    duration(rest.trim_start_matches(['"', ':', '=', ' ']))
}

/// Reads a leading number with an optional unit; what comes after it does not matter.
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
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST))
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
    fn a_retry_after_header_is_read_in_every_form() {
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
            ("99999999999999999999999999", Some(LONGEST)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ];
        for (value, expected) in table {
            assert_eq!(header(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_body_may_say_it_too() {
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
