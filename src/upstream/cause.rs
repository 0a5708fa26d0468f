//! The causes of failed connections in plain words, without the texts of the libraries that report them.

use std::error::Error;
use std::io;

use rustix::io::Errno;
use rustls::{AlertDescription, CertificateError};

use crate::trust::is_authority;

/// Texts of libraries that add nothing to their causes.
const WRAPPERS: [&str; 5] =
    ["client error (", "error trying to connect", "tcp connect error", "error sending request", "dns error"];

/// The error and its causes. An `io::Error` that wraps an error is replaced by that error, because it does not return
/// it as its source.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let next = |error: &&'a (dyn Error + 'static)| -> Option<&'a (dyn Error + 'static)> {
        let error: &'a (dyn Error + 'static) = *error;
        error.source().map(innermost)
    };
    std::iter::successors(Some(innermost(error)), next)
}

fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = inner;
    }
    error
}

/// Why rustls refused the upstream's certificate; `None` if that is not the cause.
pub(super) fn refused_certificate(error: &reqwest::Error) -> Option<&CertificateError> {
    causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(refused)) => Some(refused),
        _ => None,
    })
}

/// The limit of this server or machine that prevented a connection, and the remedy; `None` if that is not the cause.
pub(super) fn local_limit(error: &(dyn Error + 'static)) -> Option<&'static str> {
    causes(error).find_map(|cause| match Errno::from_io_error(cause.downcast_ref()?)? {
        Errno::MFILE => Some("this server has too many open files; raise its limit (ulimit -n)"),
        Errno::NFILE => Some("this machine has too many open files; raise its limit (sysctl fs.file-max)"),
        Errno::NOMEM | Errno::NOBUFS => Some("this machine has no memory for it; give this server more memory"),
        _ => None,
    })
}

/// What is wrong with a certificate, and the remedy. `upstream` is the name of its table.
pub(super) fn certificate_text(refused: &CertificateError, upstream: &str) -> String {
    let ca_file = format!("upstream.\"{upstream}\".ca_file");
    match refused {
        CertificateError::UnknownIssuer => {
            format!("no trusted authority has issued it; if its authority is private, set {ca_file}")
        }
        refused if is_authority(refused) => {
            format!(
                "it is self-signed and not listed; if it is the right one, set {ca_file} to a file that contains it"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; renew it, or correct the clock of this machine".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; correct the clock of this machine".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let (expected, presented) = (expected.to_str(), presented.join(", "));
            format!(
                "it is for {}, and not for {expected}; write a name of the certificate into upstream.\"{upstream}\".url",
                if presented.is_empty() { "no name" } else { &presented }
            )
        }
        CertificateError::NotValidForName => {
            format!("it is for other names; write a name of the certificate into upstream.\"{upstream}\".url")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it may not be used by servers; replace it".to_owned()
        }
        CertificateError::Revoked => "it was revoked; replace it".to_owned(),
        CertificateError::BadSignature => {
            format!("its signature is wrong; if its authority is private, set {ca_file} to the current one")
        }
        CertificateError::BadEncoding | CertificateError::UnhandledCriticalExtension => {
            "it cannot be read; replace it".to_owned()
        }
        other => format!("{other}; if its authority is private, set {ca_file}"),
    }
}

/// The causes of a failed connection or transfer, in plain words.
pub(super) fn plain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let (is_dns, mut text) = (causes(&error).any(|cause| cause.to_string().starts_with("dns error")), String::new());
    // reqwest's own text only says that a request failed, and contains the URL.
    for cause in causes(&error).skip(1) {
        let part = one(cause);
        if part.is_empty() || text.contains(&part) || WRAPPERS.iter().any(|wrapper| part.starts_with(wrapper)) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    match (is_dns, text.is_empty()) {
        (true, _) => {
            format!("the DNS lookup failed: {}", text.trim_start_matches("failed to lookup address information: "))
        }
        (false, true) => "the connection failed".to_owned(),
        (false, false) => text,
    }
}

fn one(cause: &(dyn Error + 'static)) -> String {
    if let Some(error) = cause.downcast_ref() {
        return tls(error);
    }
    match cause.downcast_ref::<io::Error>() {
        Some(error) => io_text(error),
        None => cause.to_string(),
    }
}

fn io_text(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    let plain = match error.kind() {
        Kind::ConnectionRefused => "the connection was refused",
        Kind::ConnectionReset => "the connection was reset",
        Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof => "the connection was closed",
        Kind::HostUnreachable | Kind::NetworkUnreachable => "there is no route to its address",
        Kind::TimedOut => "the connection timed out",
        Kind::PermissionDenied => "a firewall on this machine forbids the connection",
        Kind::AddrNotAvailable => "this machine has no free port or no address for the connection",
        _ => {
            let text = error.to_string();
            return text.split(" (os error").next().unwrap_or_default().to_owned();
        }
    };
    plain.to_owned()
}

fn tls(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; if it speaks plain HTTP, write an http URL".to_owned()
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "it requires a client certificate; set client_cert and client_key".to_owned()
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate | Alert::UnknownCA | Alert::CertificateUnknown | Alert::CertificateExpired,
        ) => "it refused our client certificate; check client_cert and client_key".to_owned(),
        rustls::Error::AlertReceived(Alert::UnrecognisedName) => "it has no certificate for this name".to_owned(),
        rustls::Error::AlertReceived(Alert::ProtocolVersion) | rustls::Error::PeerIncompatible(_) => {
            "it has no TLS version or cipher suite in common with this server; enable TLS 1.2 or 1.3 on it".to_owned()
        }
        rustls::Error::AlertReceived(_) => "it ended the TLS handshake".to_owned(),
        other => format!("the TLS handshake failed: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use rustls::OtherError;
    use rustls_pki_types::ServerName;

    use super::*;

    #[test]
    fn a_refused_certificate_has_a_cause_and_a_remedy() {
        let expected = ServerName::try_from("r.example").unwrap().to_owned();
        let cases = [
            (CertificateError::UnknownIssuer, "set upstream.\"r\".ca_file"),
            (CertificateError::Expired, "renew it"),
            (CertificateError::NotValidYet, "correct the clock"),
            (
                CertificateError::NotValidForNameContext { expected, presented: vec!["a".into(), "b".into()] },
                "it is for a, b, and not for r.example",
            ),
            (CertificateError::InvalidPurpose, "may not be used by servers"),
            (
                CertificateError::Other(OtherError(std::sync::Arc::new(io::Error::other("CaUsedAsEndEntity")))),
                "it is self-signed",
            ),
        ];
        for (refused, part) in cases {
            let text = certificate_text(&refused, "r");
            assert!(text.contains(part) && text.contains("; ") && !text.contains("CaUsed"), "{text}");
        }
    }

    /// The error of a library that has another error as its source.
    #[derive(Debug, thiserror::Error)]
    #[error("error sending request")]
    struct Wrapper(#[source] io::Error);

    #[test]
    fn a_local_limit_is_told_from_a_failure_of_the_network() {
        for (number, part) in [(24, Some("ulimit -n")), (23, Some("fs.file-max")), (12, Some("memory")), (111, None)] {
            let failed = || io::Error::from_raw_os_error(number);
            for error in [failed(), io::Error::other(Wrapper(failed()))] {
                let found = local_limit(&Wrapper(error));
                assert_eq!(found.is_some(), part.is_some(), "{number}: {found:?}");
                assert!(found.unwrap_or_default().contains(part.unwrap_or_default()), "{number}: {found:?}");
            }
        }
    }

    #[test]
    fn connection_errors_are_plain() {
        let cases = [
            (io::Error::from_raw_os_error(111), "the connection was refused"),
            (io::Error::from_raw_os_error(104), "the connection was reset"),
            (io::Error::from_raw_os_error(113), "there is no route to its address"),
            (io::Error::from_raw_os_error(101), "there is no route to its address"),
            (io::Error::from_raw_os_error(110), "the connection timed out"),
            (io::Error::from_raw_os_error(97), "Address family not supported by protocol"),
        ];
        for (error, expected) in cases {
            assert_eq!(io_text(&error), expected);
        }
    }
}
