//! The URL at which clients reach this server.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use url::Url;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUrl {
    https: bool,
    /// Host and port as they were given, because image names will contain them.
    host: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the URL of a server; write for example http://cache.example.com:5000")]
pub(super) struct InvalidServerUrl;

// === impl ServerUrl ===

impl ServerUrl {
    /// `host` or `host:port`, with which image names begin.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn is_https(&self) -> bool {
        self.https
    }

    /// Whether the server is on this machine. Docker and buildkit accept plain HTTP from such a server without a setting.
    pub(super) fn is_loopback(&self) -> bool {
        let url = Url::parse(&self.to_string()).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let ip = host.trim_matches(['[', ']']).parse();
        host == "localhost" || ip.is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl FromStr for ServerUrl {
    type Err = InvalidServerUrl;

    fn from_str(text: &str) -> Result<Self, InvalidServerUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidServerUrl)?;
        let host = rest.strip_suffix('/').unwrap_or(rest);
        let https = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(InvalidServerUrl),
        };
        // The host is written into files of several formats, so characters that one of them would have to quote are refused.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let url = Url::parse(text).map_err(|_| InvalidServerUrl)?;
        // The host is the name of a folder of containerd, too.
        let is_folder_of_its_own = host != "_default" && !host.chars().all(|c| c == '.');
        if !is_folder_of_its_own || !host.chars().all(plain) || !url.has_host() {
            return Err(InvalidServerUrl);
        }
        Ok(Self { https, host: host.to_owned() })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_url_has_a_scheme_and_a_host_and_no_path() {
        for (text, host, loopback) in [
            ("http://HOST:5000", "HOST:5000", false),
            ("https://cache.example.com/", "cache.example.com", false),
            ("http://127.0.0.1:5000", "127.0.0.1:5000", true),
            ("http://localhost:5000", "localhost:5000", true),
            ("http://[::1]:5000", "[::1]:5000", true),
        ] {
            let url: ServerUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.is_loopback()), (host, loopback), "{text}");
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
        for text in [
            "",
            "cache:5000",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://u@a",
            "http://a?b",
            "http://a\"b",
            "http://a:99999",
            "http://..",
            "http://_default",
        ] {
            assert_eq!(text.parse::<ServerUrl>(), Err(InvalidServerUrl), "{text}");
        }
    }
}
