export * from './launcher/index.js'
