//! `tls.show` and `tls.reload`: the certificate, for who administers the gateway.

use portcullis_core::auth::{Door, Principal};
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;

use super::answer::Params;
use super::methods::{Answer, Methods, Nothing};
use crate::act::entry_of;

impl Methods {
    pub(super) async fn certificate(
        &self,
        by: &Principal,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        params.read::<Nothing>(method)?;
        let certificate = self.certificate.get();
        let certificate = certificate.filter(|certificate| !certificate.facts().is_null());
        let Some(certificate) = certificate else {
            return Err(ErrorBody::of(codes::TLS_OFF, "this gateway speaks no TLS"));
        };
        if method == "tls.reload" {
            certificate.reload(entry_of(by)).await?;
        }
        let mut facts = certificate.facts();
        // Where files lie on the host is for who is on the host.
        if by.door != Door::Control
            && let Some(facts) = facts.as_object_mut()
        {
            facts.remove("certFile");
        }
        Ok(facts)
    }
}
