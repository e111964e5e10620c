// Puts the one-time code of the address into the form, wipes it from the address, and sends the form.
const form = document.forms.login;
const code = location.hash.slice(1);
if (form && code) {
  history.replaceState(null, "", "/login");
  form.elements.code.value = code;
  form.requestSubmit();
}
