// Gets a token and reads a secret by the public packages, and prints both as JSON:
//
//   node read.js VAULT CLIENT_ID managed|default
import { DefaultAzureCredential, ManagedIdentityCredential } from "@azure/identity";
import { SecretClient } from "@azure/keyvault-secrets";

const [vault, clientID, kind] = process.argv.slice(2);
const credential =
  kind === "managed"
    ? new ManagedIdentityCredential({ clientId: clientID })
    : new DefaultAzureCredential({ managedIdentityClientId: clientID });
const { token } = await credential.getToken("https://vault.azure.net/.default");
const { value } = await new SecretClient(vault, credential).getSecret("demo");
console.log(JSON.stringify({ token, secret: value }));
