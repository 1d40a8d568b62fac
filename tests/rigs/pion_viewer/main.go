// A viewer built on pion, as Go clients are: prints an offer with audio, a data channel and video, reads the answer from
// standard input, and prints RECEIVED when video arrives. Both descriptions are JSON on one line.
//
// usage: pion_viewer [-lite]. -lite: the viewer is an ICE-lite agent, as SFUs are.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/pion/webrtc/v3"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	lite := flag.Bool("lite", false, "be an ICE-lite agent")
	flag.Parse()
	media := &webrtc.MediaEngine{}
	check(media.RegisterDefaultCodecs())
	settings := webrtc.SettingEngine{}
	settings.SetLite(*lite)
	api := webrtc.NewAPI(webrtc.WithMediaEngine(media), webrtc.WithSettingEngine(settings))
	pc, err := api.NewPeerConnection(webrtc.Configuration{})
	check(err)
	received := make(chan bool, 1)
	pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		_, _, err := track.ReadRTP()
		check(err)
		received <- true
	})
	receive := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}
	_, err = pc.AddTransceiverFromKind(webrtc.RTPCodecTypeAudio, receive)
	check(err)
	_, err = pc.CreateDataChannel("control", nil)
	check(err)
	_, err = pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, receive)
	check(err)
	offer, err := pc.CreateOffer(nil)
	check(err)
	gathered := webrtc.GatheringCompletePromise(pc)
	check(pc.SetLocalDescription(offer))
	<-gathered
	check(json.NewEncoder(os.Stdout).Encode(pc.LocalDescription()))
	var answer webrtc.SessionDescription
	check(json.NewDecoder(os.Stdin).Decode(&answer))
	check(pc.SetRemoteDescription(answer))
	<-received
	fmt.Println("RECEIVED")
}
