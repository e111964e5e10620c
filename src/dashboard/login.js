// Puts the one-time code of the address into the form, wipes it from the address, and sends the form. Also when a link is
// opened while this page is shown: only the fragment changes then, and nothing is loaded anew.
function send() {
  const form = document.forms.login;
  const code = location.hash.slice(1);
  if (form && code) {
    history.replaceState(null, "", "/login");
    form.elements.code.value = code;
    form.requestSubmit();
  }
}
addEventListener("hashchange", send);
send();
