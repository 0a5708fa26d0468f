//! The token endpoint, `GET` and `POST /auth/token` (distribution, "Token Authentication Specification" and "OAuth2 Token
//! Authentication"). It exists only if there are users.
//!
//! No response has a challenge: a client would ask again with the same credentials. None says when a token was made: clients
//! add the lifetime to that time, and with a clock that differs from ours every token would look expired.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, PRAGMA};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use serde::Serialize;
use tokio::time::timeout;
use url::form_urlencoded;

use super::App;
use super::error::ApiError;
use super::query::Query;
use super::records::LoginReport;
use crate::access::{AccessError, Caller, PasswordLogin, Peer, RequestedScopes, Sender, TokenRequest};
use crate::telemetry::RequestTrace;

/// Largest body in bytes.
const MAX_FORM_BYTES: usize = 64 << 10;
const METHODS: &str = "GET, POST";

/// A token for a client. Older clients read `token`, newer ones `access_token`.
#[derive(Serialize)]
struct TokenAnswer {
    token: String,
    access_token: String,
    /// Seconds.
    expires_in: u64,
}

/// An error of RFC 6749, section 5.2. Clients then try a GET.
#[derive(Clone, Copy)]
struct FormError {
    status: StatusCode,
    code: &'static str,
}

/// Answers a request of any method.
pub(super) async fn token(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let trace = RequestTrace::new("token", request.method().clone(), request.headers());
    let (parts, body) = request.into_parts();
    let caller = Caller::new(&peer, &parts.headers);
    trace.set_client(caller.address());
    let asked = match parts.method {
        Method::GET => from_query(&app, caller, &parts.uri),
        Method::POST => match from_form(&app, caller, body).await {
            Ok(asked) => Ok(asked),
            Err(error) => return without_store(error.into_response()),
        },
        _ => {
            let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
            return response;
        }
    };
    let issued = match asked {
        Ok(asked) => {
            let _report = LoginReport::of_token(&app, caller, &trace, &asked.sender);
            app.gate.token(&asked).await.map_err(|error| ApiError::Access(error.into()))
        }
        Err(error) => Err(error),
    };
    without_store(match issued {
        Ok(issued) => {
            let answer = TokenAnswer {
                token: issued.token.clone(),
                access_token: issued.token,
                expires_in: issued.lifetime.as_secs(),
            };
            json(StatusCode::OK, &answer)
        }
        Err(error) => error.into_response(&trace),
    })
}

/// The request of a GET: the login is in `Authorization`.
fn from_query(app: &App, caller: Caller<'_>, uri: &Uri) -> Result<TokenRequest, ApiError> {
    let sender = app.gate.identify(caller).map_err(AccessError::from)?;
    Ok(TokenRequest { sender, scopes: RequestedScopes::parse(Query::of(uri).all("scope")) })
}

/// The request of a POST: the login is in the form, and only there.
async fn from_form(app: &App, caller: Caller<'_>, body: Body) -> Result<TokenRequest, FormError> {
    let too_large = FormError { status: StatusCode::PAYLOAD_TOO_LARGE, code: "invalid_request" };
    let late = FormError { status: StatusCode::REQUEST_TIMEOUT, code: "invalid_request" };
    let form = timeout(app.progress_timeout, to_bytes(body, MAX_FORM_BYTES)).await.map_err(|_| late)?;
    let form: Vec<(String, String)> = form_urlencoded::parse(&form.map_err(|_| too_large)?).into_owned().collect();
    let value = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    if value("grant_type") != "password" {
        return Err(FormError { status: StatusCode::BAD_REQUEST, code: "unsupported_grant_type" });
    }
    let sender = match value("username") {
        "" => app.gate.without_credentials(caller),
        name => Sender::Password(Box::new(PasswordLogin::new(name, value("password"), caller.address()))),
    };
    let scopes = form.iter().filter(|(key, _)| key == "scope").map(|(_, value)| value.as_str());
    Ok(TokenRequest { sender, scopes: RequestedScopes::parse(scopes) })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).unwrap_or_default();
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

fn without_store(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

impl IntoResponse for FormError {
    fn into_response(self) -> Response {
        json(self.status, &serde_json::json!({ "error": self.code }))
    }
}
